"""Cart-pole: steps, losses and gradients against NumPy and the reference values; any number of poles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import built, ode_rollout, relative, updated
from whole_runs import execute

from plugins.cart_pole import PLUGIN, CartPoleParameters, HangingOptions, components
from toolkit import Disc, Line, NoOptions, Polygon, ScenarioError, load_scenario
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import Controls
from toolkit.scenario.describe import describe
from toolkit.scenario.load import scenario_from_text
from toolkit.training.problem import batch_from_tree

SCENARIOS = Path(__file__).parents[2] / "scenarios"
HANGING = PLUGIN.samplers["hanging"]
FIELDS = ("cart", "angle", "angular_velocity")
TEXT = """
name: case
pde: {type: cart_pole, poles: 1}
time: {steps: 100, dt: 0.01}
controls: {push: {acts_on: force.push}}
data: {type: hanging, train: 8, validation: 4}
networks:
  controller: {type: mlp, layers: [100, 100], activation: tanh, input: state, every_step: true, output: push}
loss: {type: upright, on: final.angle}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 4}
"""


def simulated(
    backend, parameters: CartPoleParameters, start: dict[str, np.ndarray], push: np.ndarray, dt: float = 0.01
) -> dict[str, np.ndarray]:
    """The last state of a compiled, traced rollout under the push of all steps."""
    roll = ode_rollout(backend, PLUGIN, parameters, push.shape[1], dt)
    initial = {name: backend.array(value) for name, value in start.items()}
    controls = backend.array(push)
    roll.prepare(initial, Controls({"push": controls}))
    run = backend.compile(lambda s, u: roll(s, Controls({"push": u})).final, initial, controls)
    return {name: backend.numpy(value) for name, value in run(initial, controls).items()}


def drawn(parameters: CartPoleParameters, rng: Any, count: int) -> dict[str, np.ndarray]:
    """Starts of the sampler by field."""
    found = HANGING.sample(None, parameters, HangingOptions(), rng, count)
    return {name: found[f"initial.{name}"] for name in FIELDS}


def numpy_steps(state: dict[str, np.ndarray], push: np.ndarray, p: CartPoleParameters, dt: float) -> dict[str, Any]:
    """The published equations, pole by pole."""
    x, v = state["cart"].T
    angle, rate = state["angle"].T.copy(), state["angular_velocity"].T.copy()
    moment = p.pole_mass * p.half_length
    for force in push.T:
        sideways = np.zeros_like(x)
        for k in range(p.poles):
            s, c = np.sin(angle[k]), np.cos(angle[k])
            own = (force + moment * s * rate[k] ** 2) / p.total_mass
            bend = (p.gravity * s - c * own) / (p.half_length * (4 / 3 - p.pole_mass * c**2 / p.total_mass))
            sideways += s * rate[k] ** 2 - bend * c
            rate[k] = rate[k] + dt * bend
            angle[k] = angle[k] + dt * rate[k]
        v = v + dt * (force + moment * sideways) / p.total_mass
        x = x + dt * v
    return {"cart": np.stack([x, v], axis=1), "angle": angle.T, "angular_velocity": rate.T}


def gym_rates(state: np.ndarray, force: float, p: CartPoleParameters) -> np.ndarray:
    """(ẋ, ẍ, θ̇, θ̈) of the cart-pole of Barto et al. as Gym writes it, from (x, ẋ, θ, θ̇)."""
    _, x_dot, theta, theta_dot = state
    temp = (force + p.pole_mass * p.half_length * theta_dot**2 * np.sin(theta)) / p.total_mass
    theta_acc = (p.gravity * np.sin(theta) - np.cos(theta) * temp) / (
        p.half_length * (4 / 3 - p.pole_mass * np.cos(theta) ** 2 / p.total_mass)
    )
    x_acc = temp - p.pole_mass * p.half_length * theta_acc * np.cos(theta) / p.total_mass
    return np.array([x_dot, x_acc, theta_dot, theta_acc])


def upright(angle: np.ndarray) -> np.ndarray:
    return 1 - np.cos(angle).mean(axis=1)


# --- physics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "cart", "angle", "rate"),
    [
        (1, (0.0982066900, -0.1793309972), (3.0055118890, 3.2960399100), (0.5511888965, -0.3960090014)),
        (100, (0.8390091183, 1.5662924167), (3.4514472802, 3.4166990773), (-1.2889780757, 0.1914338178)),
    ],
)
def test_two_poles_move_as_published_under_a_constant_push(backend, steps, cart, angle, rate):
    start = {
        "cart": np.array([[0.1, -0.2]]),
        "angle": np.array([[3.0, 3.3]]),
        "angular_velocity": np.array([[0.5, -0.4]]),
    }
    end = simulated(backend, CartPoleParameters(poles=2), start, np.full((1, steps), 2.0))
    # The reference values have ten digits.
    for name, expected in zip(FIELDS, (cart, angle, rate), strict=True):
        assert np.max(np.abs(end[name] - expected)) < 6e-11


@pytest.mark.parametrize(("poles", "loss"), [(1, 1.97160), (2, 1.97250), (3, 1.97243), (4, 1.97245)])
def test_published_loss_without_a_push(backend, poles, loss):
    """The published test set: the second 256 draws of NumPy's old generator with seed 42."""
    parameters, rng = CartPoleParameters(poles=poles), np.random.RandomState(42)
    drawn(parameters, rng, 256)
    start = drawn(parameters, rng, 256)
    if poles == 1:
        # Drawn in single precision there.
        assert np.max(np.abs(start["cart"][0] - (0.88853300, -0.05157155))) < 1e-7
        assert abs(start["angle"][0, 0] - 3.52072287) < 1e-7
        assert abs(start["angular_velocity"][0, 0] - 0.68909883) < 1e-7
    end = simulated(backend, parameters, start, np.zeros((256, 100)))
    # The reference values have six digits.
    assert np.mean(upright(end["angle"])) == pytest.approx(loss, abs=6e-6)


@pytest.mark.parametrize("poles", [1, 2, 5])
def test_any_number_of_poles_equals_numpy(backend, poles):
    parameters = CartPoleParameters(poles=poles, gravity=3.0, pole_mass=0.7, total_mass=2.0, half_length=0.8)
    rng = np.random.default_rng(poles)
    start, push = drawn(parameters, rng, 3), 5 * rng.standard_normal((3, 20))
    end, expected = simulated(backend, parameters, start, push, 0.05), numpy_steps(start, push, parameters, 0.05)
    for name in FIELDS:
        assert end[name].shape == start[name].shape
        # Twenty steps of some thirty roundings, stretched by the swing.
        assert relative(end[name], expected[name]) < 1e-12


def test_one_pole_is_the_cart_pole_of_gym(backend):
    """A tiny step gives the rates; they are linear in it to a few times dt."""
    parameters, rng, dt = CartPoleParameters(), np.random.default_rng(0), 1e-7
    start, push = drawn(parameters, rng, 5), 10 * rng.standard_normal((5, 1))
    start["angle"] = rng.uniform(-np.pi, np.pi, (5, 1))
    end = simulated(backend, parameters, start, push, dt)
    before, after = (np.concatenate([s[name] for name in FIELDS], axis=1) for s in (start, end))
    expected = np.stack([gym_rates(s, u, parameters) for s, u in zip(before, push[:, 0], strict=True)])
    # Positions move with the new velocities: ẍ dt = 1e-5 at most; cancellation leaves 1e-16 / dt = 1e-9.
    assert np.max(np.abs((after - before) / dt - expected)) < 1e-5
    assert np.max(np.abs((after - before)[:, (1, 3)] / dt - expected[:, (1, 3)])) < 1e-7


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_error_without_a_push_shrinks_in_first_order_as_does_the_drift_of_energy(backend):
    parameters, rng = CartPoleParameters(), np.random.default_rng(1)
    start = drawn(parameters, rng, 20)
    s = np.concatenate([start[name] for name in FIELDS], axis=1)
    for _ in range(1000):  # Runge–Kutta: exact to 1e-10 at this step
        k1 = gym_rates(s.T, 0.0, parameters).T
        k2 = gym_rates((s + 5e-4 * k1).T, 0.0, parameters).T
        k3 = gym_rates((s + 5e-4 * k2).T, 0.0, parameters).T
        k4 = gym_rates((s + 1e-3 * k3).T, 0.0, parameters).T
        s = s + 1e-3 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    energy = PLUGIN.monitors(parameters, None)[0].measure

    def wrapped(state: dict[str, np.ndarray]) -> dict[str, Any]:
        layouts = {"cart": Layout(("position", "velocity")), **dict.fromkeys(FIELDS[1:], Layout(("pole_1",)))}
        return {name: layouts[name].wrap(backend.array(state[name])) for name in FIELDS}

    errors, drifts = [], []
    for steps in (200, 400):
        end = simulated(backend, parameters, start, np.zeros((20, steps)), 1 / steps)
        errors.append(np.max(np.abs(np.concatenate([end[name] for name in FIELDS], axis=1) - s)))
        drifts.append(np.mean(backend.numpy(Layout().native(energy(wrapped(start), wrapped(end)), 20))))
    # dt² terms still show by a few per cent.
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert drifts[0] / drifts[1] == pytest.approx(2, abs=0.1)
    assert drifts[0] < 0.01


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_a_mirrored_start_and_push_give_the_mirrored_end(backend):
    parameters, rng = CartPoleParameters(poles=3), np.random.default_rng(2)
    start, push = drawn(parameters, rng, 4), 5 * rng.standard_normal((4, 30))
    end = simulated(backend, parameters, start, push)
    mirrored = simulated(backend, parameters, {name: -value for name, value in start.items()}, -push)
    for name in FIELDS:
        assert relative(-mirrored[name], end[name]) < 1e-14
    # A full turn changes nothing but the angle, and the order of poles nothing but theirs.
    other = {"angle": start["angle"][:, ::-1] + 2 * np.pi, "angular_velocity": start["angular_velocity"][:, ::-1]}
    turned = simulated(backend, parameters, {**start, **other}, push)
    assert relative(turned["cart"], end["cart"]) < 1e-12
    assert relative(turned["angle"][:, ::-1] - 2 * np.pi, end["angle"]) < 1e-12


def test_gradient_of_the_push_equals_differences(backend):
    parameters, rng = CartPoleParameters(poles=2), np.random.default_rng(3)
    start, push = drawn(parameters, rng, 3), 3 * rng.standard_normal((3, 10))
    roll = ode_rollout(backend, PLUGIN, parameters, 10, 0.05)
    initial = {name: backend.array(value) for name, value in start.items()}
    roll.prepare(initial, Controls({"push": backend.array(push)}))
    backward = backend.numpy(
        backend.pullbacks(lambda u: roll(initial, Controls({"push": u})).final["angle"], backend.array(push), True)
    )
    h = 1e-5
    ends = [numpy_steps(start, push + s * h * e, parameters, 0.05)["angle"] for e in np.eye(10) for s in (1, -1)]
    numeric = np.stack([(a - b) / (2 * h) for a, b in zip(ends[::2], ends[1::2], strict=True)])
    # Central differences: h² plus rounding over h.
    assert relative(backward, numeric.transpose(2, 1, 0)) < 1e-8


def deterministic(case: Any, backend: Any, gain: float) -> None:
    """The start and the weights of the reference, in place of those drawn."""
    b = np.arange(4)[:, None]
    k = np.arange(1)[None]
    context = {
        "initial.cart": np.concatenate([0.2 * b - 0.3, 0.1 * b], axis=1),
        "initial.angle": np.pi + 0.3 * np.sin(b + 2 * k + 1),
        "initial.angular_velocity": 0.5 * np.cos(b - k),
    }
    for key, value in context.items():
        case.validation.context[key] = backend.array(value)
    for layer, name in enumerate(("dense0", "dense1", "out")):
        outputs, inputs = case.params[f"controller/{name}.weight"].shape
        i, j = np.meshgrid(np.arange(inputs), np.arange(outputs))
        weight = 2 * np.sin(1 + layer + 0.7 * i + 1.3 * j) / inputs**0.5
        case.params[f"controller/{name}.weight"] = backend.array(weight * (gain if name == "out" else 1))
        case.params[f"controller/{name}.bias"] = backend.array(0.1 * np.cos(np.arange(outputs) + layer))


NORMS = {
    "full": (0.1249448431, 32.61845785),
    "physics": (0.1223754919, 70.72168719),
    "network": (1.377249927e-4, 0.07486700036),
    "stopped": (1.377154742e-4, 0.08024243544),
    "combined": (0.1223754741, 58.10609476),
}
"""Published norms of the directions at the gains 1 and 100 of the last layer."""
LOSSES, KEPT, COSINES = (1.976350535025, 1.574091519008), (0.998318, 0.623306), (0.99995236, 0.37409522)


@pytest.mark.parametrize("flow", NORMS)
def test_published_directions_of_a_controller(backend, flow):
    """One pole: positions, angles and velocities stand in the published order."""
    case = built(TEXT.replace("type: dp", f"type: stable_bptt, flow: {flow}"), backend)
    found = {}

    def update(params: Any, tree: Any) -> Any:
        result = case.trainer.rule(case.problem, params, case.buffers, batch_from_tree(tree))
        return dict(result.direction), result.loss, dict(result.metrics)

    program = None
    for gain in (1, 100):
        deterministic(case, backend, gain)
        arguments = (case.params, case.validation.tree())
        program = program or backend.compile(update, *arguments)
        found[gain] = program(*arguments)
    for (direction, loss, metrics), norm, *expected in zip(
        found.values(), NORMS[flow], LOSSES, KEPT, COSINES, strict=True
    ):
        # The reference takes means over the batch, to ten digits; here they are sums.
        assert float(loss) / 4 == pytest.approx(expected[0], rel=1e-11)
        flat = np.concatenate([backend.numpy(value).ravel() / 4 for value in direction.values()])
        # A hundred steps of feedback stretch rounding a thousandfold at the large gain.
        assert np.linalg.norm(flat) == pytest.approx(norm, rel=1e-9)
        if flow == "combined":
            # Six and eight digits are given.
            assert float(metrics["kept_share"]) == pytest.approx(expected[1], abs=6e-7)
            assert float(metrics["cosine"]) == pytest.approx(expected[2], abs=6e-9)


def test_the_vote_keeps_what_climbs_least_at_the_large_gain(backend):
    """⟨G, C⟩ = 1097.88 and ⟨G, M⟩ = 862.975, as published for means over the batch."""
    case = built(TEXT.replace("type: dp", "type: stable_bptt, flow: combined"), backend)
    deterministic(case, backend, 100)
    combined = updated(case)["direction"]
    case = built(TEXT.replace("type: dp", "type: stable_bptt, flow: full"), backend)
    deterministic(case, backend, 100)
    full = updated(case)["direction"]
    assert sum(np.sum(full[n] * combined[n]) for n in full) / 16 == pytest.approx(1097.88, abs=6e-3)
    # cos(M, G) |M| |G|, from the test above.
    assert COSINES[1] * NORMS["full"][1] * NORMS["physics"][1] == pytest.approx(862.975, abs=6e-4)


def test_an_output_layer_of_zeros_leaves_one_direction_in_that_layer_alone(backend):
    case = built(TEXT.replace("type: dp", "type: stable_bptt"), backend)
    zeros = {name: 0 * value if "/out." in name else value for name, value in case.params.items()}
    update = case.trainer.rule(case.problem, zeros, case.buffers, case.validation)
    direction = {name: backend.numpy(value) for name, value in update.direction.items()}
    assert sum(value.size for value in direction.values()) == 10_701
    assert sum(np.count_nonzero(value) for value in direction.values()) == 101
    assert all(np.any(value) == ("/out." in name) for name, value in direction.items())
    # G = M = C: what is kept is everything but the zeros, and the angle between M and G is none.
    assert float(update.metrics["cosine"]) == pytest.approx(1, rel=1e-12)
    assert float(update.metrics["physics_norm"]) == pytest.approx(float(update.metrics["full_norm"]), rel=1e-12)


# --- loss and sampler ---------------------------------------------------------------------------------------------


def test_the_loss_is_0_upright_2_hanging_and_the_mean_over_poles_and_states(backend):
    loss: Any = PLUGIN.losses["upright"].build(NoOptions())
    angle = np.array([[0.0, 2 * np.pi], [np.pi, -np.pi], [0.3, 2.0]])
    native = Layout().native(loss.value(Layout(("pole_1", "pole_2")).wrap(backend.array(angle)), None), 3)
    # Rounding of one cosine.
    np.testing.assert_allclose(backend.numpy(native), upright(angle), rtol=0, atol=1e-15)
    assert backend.numpy(native)[:2] == pytest.approx([0, 2], abs=1e-15)
    trajectory = Layout(("pole_1", "pole_2"), None, 3).wrap(backend.array(angle[None]))
    value = backend.numpy(Layout().native(loss.value(trajectory, None), 1))
    assert value[0] == pytest.approx(np.mean(upright(angle)), abs=1e-15)


def test_the_loss_judges_angles_only():
    with pytest.raises(ScenarioError, match=r"'upright' judges final\.angle, trajectory\.angle, not final\.cart"):
        scenario_from_text(TEXT.replace("final.angle", "final.cart"))


def test_starts_lie_where_the_options_say_and_follow_from_the_seed():
    parameters = CartPoleParameters(poles=3)
    found = drawn(parameters, np.random.default_rng(0), 4000)
    assert [found[name].shape for name in FIELDS] == [(4000, 2), (4000, 3), (4000, 3)]
    for values, centre, reach in (
        (found["cart"], 0.0, 1.0),
        (found["angle"], np.pi, np.pi / 6),
        (found["angular_velocity"], 0.0, 1.0),
    ):
        assert np.all(np.abs(values - centre) <= reach)
        assert np.all(np.abs(values - centre).max(axis=0) > 0.99 * reach)
        # Four standard errors of a mean of 4000 uniform numbers.
        assert np.all(np.abs(values.mean(axis=0) - centre) < 4 * reach / 3**0.5 / 4000**0.5)
    again = drawn(parameters, np.random.default_rng(0), 4000)
    assert all(np.array_equal(found[name], again[name]) for name in FIELDS)
    # No two columns are copies of each other.
    columns = np.concatenate([found[name] for name in FIELDS], axis=1)
    assert np.max(np.abs(np.corrcoef(columns.T) - np.eye(8))) < 0.1
    options = HangingOptions(position=(2, 3), velocity=(0, 0), deviation=(-np.pi, -np.pi), angular_velocity=(4, 5))
    other = HANGING.sample(None, parameters, options, np.random.default_rng(0), 50)
    assert np.all((other["initial.cart"][:, 0] >= 2) & (other["initial.cart"][:, 0] < 3))
    assert np.all(other["initial.cart"][:, 1] == 0)
    assert np.all(other["initial.angle"] == 0)
    assert np.all((other["initial.angular_velocity"] >= 4) & (other["initial.angular_velocity"] < 5))


# --- plugin and scenarios -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"pde.poles": 0}, r"pde\.poles: expected a number ≥ 1, got 0"),
        ({"pde.half_length": 0}, r"pde\.half_length: expected a number > 0, got 0"),
        ({"pde.pole_mass": 1.1}, r"the cart weighs total_mass − pole_mass = 0 kg; expected total_mass > pole_mass"),
        ({"data.position": [1, -1]}, r"data\.position: expected \[from, to\] with from ≤ to, got \[1, -1\]"),
        ({"data.deviation": [1, -1]}, r"data\.deviation: expected \[from, to\]"),
        ({"time.dt": 1.0}, r"phase of a small swing per step.*time\.dt"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, sentence):
    with pytest.raises(ScenarioError, match=sentence):
        scenario_from_text(TEXT, overrides)


def test_energy_is_watched_where_it_is_conserved():
    assert [m.name for m in PLUGIN.monitors(CartPoleParameters(), None)] == ["energy_drift"]
    assert PLUGIN.monitors(CartPoleParameters(), None)[0].without == ("force",)
    # The published equations of several poles do not conserve it.
    assert PLUGIN.monitors(CartPoleParameters(poles=2), None) == ()


def test_the_drawing_shows_the_cart_and_each_pole_as_long_as_it_is():
    parameters = CartPoleParameters(poles=2, half_length=0.7)
    state = {"cart": np.array([3.0, 9.0]), "angle": np.array([0.0, np.pi / 2]), "angular_velocity": np.ones(2)}
    assert PLUGIN.drawing is not None
    drawing = PLUGIN.drawing(parameters, state)
    kinds = [type(shape) for shape in drawing.shapes]
    assert kinds == [Polygon, Line, Line, Disc, Disc]
    shapes: Any = drawing.shapes
    cart, up, right, *bobs = shapes
    assert np.mean(cart.points, axis=0) == pytest.approx([3.0, 0.0])
    # Upright points up, a positive angle leans to the right; the whole pole is twice the half-length.
    assert np.asarray(up.points) == pytest.approx(np.array([[3.0, 0.0], [3.0, 1.4]]))
    assert np.asarray(right.points) == pytest.approx(np.array([[3.0, 0.0], [4.4, 0.0]]), abs=1e-12)
    assert [bob.centre for bob in bobs] == [up.points[1], right.points[1]]
    (left, end), (low, high) = drawing.limits
    points = np.concatenate([shape.points for shape in drawing.shapes])
    assert left < points[:, 0].min() < points[:, 0].max() < end
    assert low < points[:, 1].min() < points[:, 1].max() < high
    assert {shape.label for shape in drawing.shapes} == {"cart", "pole"}


def test_the_shipped_scenario_has_the_published_size():
    described = describe(load_scenario(SCENARIOS / "cart_pole.yaml"))
    assert described.trained == 10_701
    assert described.controls[0].shape == (100,)
    more = describe(load_scenario(SCENARIOS / "cart_pole.yaml", {"pde.poles": 3}))
    assert more.trained == 10_701 + 2 * 200


def test_names_of_poles():
    assert components(CartPoleParameters(poles=2)) == ("pole_1", "pole_2")


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_the_scenario_learns(tmp_path, backend):
    """A few updates of a smaller set."""
    small = {"data.train": 16, "data.validation": 16, "train.steps": 8, "train.validate_every": 2, "output.samples": 2}
    quick = {"update.optimizer.learning_rate": 1e-2, "output.plots": False, "run.backend": backend.name}
    run = execute(SCENARIOS / "cart_pole.yaml", tmp_path, {**small, **quick})
    with run.stored:
        loss = run.metrics.validation_loss.dropna("step").values
        assert loss[0] == pytest.approx(1.97, abs=0.02)
        assert loss[-1] < 0.9 * loss[0]
        assert run.fields.angle.dims == ("sample", "t", "angle_component")
        assert run.fields.angle.attrs["units"] == "rad"
        assert run.fields.push.dims == ("sample", "t")
