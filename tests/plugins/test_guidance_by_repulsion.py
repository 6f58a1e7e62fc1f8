"""Guidance by repulsion: steps and losses against NumPy and the reference values; symmetries and singular pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import built, ode_rollout, relative, updated
from whole_runs import execute

from plugins.guidance_by_repulsion import PLUGIN, GatheredOptions, GuidanceParameters, ScatteredOptions, coordinates
from toolkit import Cross, Disc, ScenarioError, load_scenario
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import Controls
from toolkit.scenario.describe import describe
from toolkit.scenario.load import scenario_from_text

SCENARIOS = Path(__file__).parents[2] / "scenarios"
SCATTERED = PLUGIN.samplers["scattered"]
FIELDS = ("drivers", "driver_velocities", "evaders", "evader_velocities")
PUBLISHED = GuidanceParameters()
TEXT = """
name: case
pde: guidance_by_repulsion
time: {steps: 4, dt: 1/15}
controls: {drive: {acts_on: force.drive}}
data: {type: scattered, train: 8, validation: 4}
networks: {controller: {type: mlp, layers: [5], activation: tanh, input: state, every_step: true, output: drive}}
loss: {type: gathered, on: trajectory.evaders}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 4}
"""
STEP = {
    "drivers": [3.0, 1.0, -2.0, 3.0],
    "driver_velocities": [0.1, 0.0, 0.0, 0.2],
    "evaders": [1.0, 0.5, 1.5, 0.0],
    "evader_velocities": [0.3, -0.1, 0.0, 0.0],
}


def simulated(
    backend,
    parameters: GuidanceParameters,
    start: dict[str, np.ndarray],
    drive: np.ndarray | None,
    steps: int,
    dt: float = 1 / 15,
) -> dict[str, np.ndarray]:
    """All states (B, T, …) of a compiled, traced rollout; `drive` is (B, T, 2 drivers)."""
    roll = ode_rollout(backend, PLUGIN, parameters, steps, dt)
    initial = {name: backend.array(value) for name, value in start.items()}
    force = {} if drive is None else {"drive": backend.array(drive)}
    roll.prepare(initial, Controls(force))
    run = backend.compile(lambda s, u: roll(s, Controls(u), record=True).states, initial, force)
    return {name: backend.numpy(value) for name, value in run(initial, force).items()}


def drawn(parameters: GuidanceParameters, rng: Any, count: int) -> dict[str, np.ndarray]:
    """Starts of the sampler by field."""
    found = SCATTERED.sample(None, parameters, ScatteredOptions(), rng, count)
    return {name: found[f"initial.{name}"] for name in FIELDS}


def moving(parameters: GuidanceParameters, seed: int, count: int = 3) -> dict[str, np.ndarray]:
    """Starts with velocities."""
    rng = np.random.default_rng(seed)
    found = drawn(parameters, rng, count)
    return {n: v + rng.standard_normal(v.shape) if n.endswith("velocities") else v for n, v in found.items()}


def numpy_step(s: dict[str, np.ndarray], drive: np.ndarray, p: GuidanceParameters, dt: float) -> dict[str, np.ndarray]:
    """One sample, written out with loops over all pairs of different objects."""
    drivers, driver_v, evaders, evader_v = (s[name].reshape(-1, 2) for name in FIELDS)
    centre = evaders.sum(axis=0) / (1 if p.centre == "sum" else len(evaders))
    driver_a, evader_a = np.zeros_like(drivers), np.zeros_like(evaders)
    for j, x in enumerate(drivers):
        w = x - centre
        a, b = drive.reshape(-1, 2)[j]
        driver_a[j] = a * w + b * np.array([-w[1], w[0]]) - p.driver_friction * driver_v[j]
        for k, other in enumerate(drivers):
            if k != j:
                d = p.softening + np.linalg.norm(x - other)
                driver_a[j] += p.driver_repulsion * (x - other) / d**2
    for e, x in enumerate(evaders):
        evader_a[e] = -p.evader_friction * evader_v[e]
        for driver in drivers:
            d = p.softening + np.linalg.norm(x - driver)
            evader_a[e] += p.evader_repulsion * (x - driver) / d**2
        for i, other in enumerate(evaders):
            if i != e:
                d = p.softening + np.linalg.norm(x - other)
                sign = 1 if p.flocking == "published" else -1
                evader_a[e] += sign * p.flocking_strength * (p.flocking_distance / d - 1) / d * (other - x)
    new = (drivers + dt * driver_v, driver_v + dt * driver_a, evaders + dt * evader_v, evader_v + dt * evader_a)
    return {name: value.ravel() for name, value in zip(FIELDS, new, strict=True)}


def numpy_final(start: dict[str, np.ndarray], drive: np.ndarray, p: GuidanceParameters, dt: float) -> dict[str, Any]:
    ends = []
    for i in range(len(drive)):
        s = {name: value[i] for name, value in start.items()}
        for u in drive[i]:
            s = numpy_step(s, u, p, dt)
        ends.append(s)
    return {name: np.stack([s[name] for s in ends]) for name in FIELDS}


def rotated(values: np.ndarray, angle: float) -> np.ndarray:
    """Points (…, 2n) turned about the origin."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (values.reshape(*values.shape[:-1], -1, 2) @ turn.T).reshape(values.shape)


# --- physics ------------------------------------------------------------------------------------------------------


def test_a_published_step(backend):
    parameters = GuidanceParameters(evaders=2)
    start = {name: np.array([value]) for name, value in STEP.items()}
    end = simulated(backend, parameters, start, np.array([[[-0.5, 0.2, 0.3, -0.1]]]), 1)
    expected = {
        "drivers": (3.0066666667, 1, -2, 3.0133333333),
        "driver_velocities": (0.0722157940, -0.0108863176, -0.0755491273, 0.2675529843),
        "evaders": (1.02, 0.4933333333, 1.5, 0),
        "evader_velocities": (-0.0241762100, -0.3330542175, -0.2533722513, -0.4145887498),
    }
    # The reference values have ten digits.
    for name in FIELDS:
        assert np.max(np.abs(end[name][0, 0] - expected[name])) < 6e-11


def test_published_loss_without_a_drive(backend):
    """The published data: 512 draws of NumPy's old generator with seed 42, the second half for the test."""
    start = drawn(PUBLISHED, np.random.RandomState(42), 512)
    # The reference values have six digits.
    assert np.mean(start["evaders"][:256] ** 2) == pytest.approx(1.25139, abs=6e-6)
    states = simulated(backend, PUBLISHED, {name: value[256:] for name, value in start.items()}, None, 60)
    assert np.mean(states["evaders"] ** 2) == pytest.approx(5.24049, abs=6e-6)


@pytest.mark.parametrize(
    ("drivers", "evaders", "more"),
    [
        (2, 4, {}),
        (1, 1, {}),
        (3, 2, {"centre": "mean", "flocking": "intended"}),
        (
            1,
            5,
            {"driver_friction": 0.3, "evader_friction": 2.0, "driver_repulsion": 0.7, "evader_repulsion": 3.0}
            | {"flocking_strength": 1.3, "flocking_distance": 0.9, "softening": 0.2},
        ),
        (12, 3, {}),
    ],
)
def test_any_number_of_drivers_and_evaders_equals_numpy(backend, drivers, evaders, more):
    parameters = GuidanceParameters(drivers=drivers, evaders=evaders, **more)
    start = moving(parameters, drivers)
    drive = np.random.default_rng(0).standard_normal((3, 5, 2 * drivers))
    end, expected = simulated(backend, parameters, start, drive, 5, 0.05), numpy_final(start, drive, parameters, 0.05)
    for name in FIELDS:
        assert end[name].shape == (3, 5, start[name].shape[1])
        # Five steps of some thirty roundings.
        assert relative(end[name][:, -1], expected[name]) < 1e-13


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_without_a_drive_is_a_drive_of_zero(backend):
    start = moving(PUBLISHED, 1)
    none, zero = (simulated(backend, PUBLISHED, start, drive, 3) for drive in (None, np.zeros((3, 3, 4))))
    for name in FIELDS:
        # A sum with an added zero may be taken in another order.
        assert relative(none[name], zero[name]) < 1e-15


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_turned_starts_give_turned_ends_for_the_same_drive(backend):
    start, drive = moving(PUBLISHED, 2), np.random.default_rng(2).standard_normal((3, 10, 4))
    end = simulated(backend, PUBLISHED, start, drive, 10)
    turned = simulated(backend, PUBLISHED, {name: rotated(value, 0.7) for name, value in start.items()}, drive, 10)
    for name in FIELDS:
        assert relative(turned[name], rotated(end[name], 0.7)) < 1e-13
    # A mirror turns the sense of driving across.
    mirror = np.tile([1.0, -1.0], 6)
    flipped = {name: value * mirror[: value.shape[1]] for name, value in start.items()}
    mirrored = simulated(backend, PUBLISHED, flipped, drive * mirror[:4], 10)
    for name in FIELDS:
        assert relative(mirrored[name], end[name] * mirror[: end[name].shape[2]]) < 1e-13


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_evaders_have_no_names(backend):
    start, drive = moving(PUBLISHED, 3), np.random.default_rng(3).standard_normal((3, 8, 4))
    order = [2, 0, 3, 1]

    def exchanged(values: np.ndarray) -> np.ndarray:
        return values.reshape(*values.shape[:-1], 4, 2)[..., order, :].reshape(values.shape)

    end = simulated(backend, PUBLISHED, start, drive, 8)
    other = {name: exchanged(value) if name.startswith("evader") else value for name, value in start.items()}
    moved = simulated(backend, PUBLISHED, other, drive, 8)
    assert relative(moved["evaders"], exchanged(end["evaders"])) < 1e-13
    assert relative(moved["drivers"], end["drivers"]) < 1e-13


@pytest.mark.parametrize(
    ("gap", "published"), [(0.2, 0.0889), (0.4, 0.0), (0.5, -0.0278), (1.0, -0.0992), (2.0, -0.1451)]
)
def test_flocking_as_published_and_as_intended(backend, gap, published):
    """The pull on an evader by a neighbour, without drivers' repulsion: towards it is positive."""
    start = {name: np.zeros((1, 2 if name.startswith("driver") else 4)) for name in FIELDS}
    start["evaders"] = np.array([[0.0, 0.0, gap, 0.0]])
    pulls = []
    for flocking in ("published", "intended"):
        parameters = GuidanceParameters(drivers=1, evaders=2, evader_repulsion=0.0, flocking=flocking)
        velocities = simulated(backend, parameters, start, None, 1)["evader_velocities"][0, 0] * 15
        assert velocities[:2] == pytest.approx(-velocities[2:], abs=1e-15)
        pulls.append(velocities[0])
    # The reference values have four decimals.
    assert pulls[0] == pytest.approx(published, abs=5.1e-5)
    assert pulls[1] == -pulls[0]
    if gap != 0.4:
        # Intended: near ones repel, distant ones attract.
        assert np.sign(pulls[1]) == np.sign(gap - 0.4)


def test_the_centre_is_the_sum_unless_the_mean_is_asked_for(backend):
    start = {name: np.array([value]) for name, value in STEP.items()}
    drive, free = np.array([[[1.0, 0.0, 0.0, 0.0]]]), {"evaders": 2, "driver_repulsion": 0.0, "driver_friction": 0.0}
    for centre, expected in (("sum", (2.5, 0.5)), ("mean", (1.25, 0.25))):
        end = simulated(backend, GuidanceParameters.model_validate({"centre": centre, **free}), start, drive, 1)
        push = (end["driver_velocities"][0, 0, :2] - (0.1, 0.0)) * 15
        assert push == pytest.approx(np.array([3.0, 1.0]) - expected, abs=1e-13)


# --- derivatives --------------------------------------------------------------------------------------------------


def test_gradient_of_the_drive_equals_differences_and_is_zero_for_the_last_three_steps(backend):
    start, drive = moving(PUBLISHED, 4), 0.5 * np.random.default_rng(4).standard_normal((3, 6, 4))
    roll = ode_rollout(backend, PLUGIN, PUBLISHED, 6, 1 / 15)
    initial = {name: backend.array(value) for name, value in start.items()}
    roll.prepare(initial, Controls({"drive": backend.array(drive)}))

    def loss(x: Any) -> tuple[Any, Any]:
        return backend.xp.sum(roll(initial, Controls(x)).final["evaders"] ** 2), ()

    x = {"drive": backend.array(drive)}
    gradient = backend.compile(lambda x: backend.value_and_gradient(loss, x)[2], x)(x)
    found = backend.numpy(gradient["drive"])
    # Drive, driver's velocity, its position, evader's velocity, evader's position: four steps in explicit Euler.
    assert np.all(found[:, 3:] == 0)
    assert np.all(found[:, :3] != 0)
    direction, h = np.random.default_rng(5).standard_normal(drive.shape), 1e-4
    ends = [numpy_final(start, drive + s * h * direction, PUBLISHED, 1 / 15)["evaders"] for s in (1, -1)]
    numeric = (np.sum(ends[0] ** 2) - np.sum(ends[1] ** 2)) / (2 * h)
    # Central differences: h², and rounding of a sum near 100 over h.
    assert np.sum(found * direction) == pytest.approx(numeric, rel=1e-6)


def test_coinciding_ones_give_finite_gradients(backend):
    """Two evaders at one place, and a driver on top of an evader."""
    start = {name: np.array([value]) for name, value in STEP.items()}
    start["evaders"] = np.array([[1.0, 0.5, 1.0, 0.5]])
    start["drivers"] = np.array([[1.0, 0.5, -2.0, 3.0]])
    parameters = GuidanceParameters(evaders=2)
    roll = ode_rollout(backend, PLUGIN, parameters, 3, 1 / 15)
    initial = {name: backend.array(value) for name, value in start.items()}
    drive = backend.array(np.full((1, 3, 4), 0.1))

    def loss(x: Any) -> tuple[Any, Any]:
        y = roll({name: x[name] for name in FIELDS}, Controls({"drive": x["drive"]}), record=True).states
        return sum(backend.xp.sum(value**2) for value in y.values()), ()

    x = {**initial, "drive": drive}
    for name, found in backend.compile(lambda x: backend.value_and_gradient(loss, x)[2], x)(x).items():
        assert np.all(np.isfinite(backend.numpy(found))), name
    # Nothing pushes apart what lies at one place, but a shift of one is felt: near the place, d = s.
    expected = numpy_final(start, np.full((1, 3, 4), 0.1), parameters, 1 / 15)
    states = simulated(backend, parameters, start, np.full((1, 3, 4), 0.1), 3)
    for name in FIELDS:
        assert relative(states[name][:, -1], expected[name]) < 1e-13


def test_a_gradient_stopped_after_each_step_never_starts_to_learn(backend):
    """No control moves an evader within its own step, and a controller that starts at zero pays no penalty."""
    penalised = "loss: [{type: gathered, on: trajectory.evaders}, {type: mean_square, on: force.drive, weight: 0.1}]"
    text = TEXT.replace("loss: {type: gathered, on: trajectory.evaders}", penalised)
    text = text.replace("type: dp", "type: stable_bptt, flow: stopped").replace("tanh,", "tanh, zero_output: true,")
    found = updated(built(text, backend))
    assert found["loss"][""] > 1
    assert not any(np.any(value) for value in found["direction"].values())


# --- loss and sampler ---------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_square_distance_per_coordinate(backend):
    loss: Any = PLUGIN.losses["gathered"].build(GatheredOptions(target=(1.0, -2.0)))
    y = np.random.default_rng(0).standard_normal((3, 5, 6))
    layout = Layout(coordinates(3), None, 5)
    found = backend.numpy(Layout().native(loss.value(layout.wrap(backend.array(y)), None), 3))
    expected = ((y - np.tile([1.0, -2.0], 3)) ** 2).mean(axis=(1, 2))
    # A mean of thirty numbers.
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    last = Layout(coordinates(3)).wrap(backend.array(y[:, -1]))
    found = backend.numpy(Layout().native(loss.value(last, None), 3))
    np.testing.assert_allclose(found, ((y[:, -1] - np.tile([1.0, -2.0], 3)) ** 2).mean(axis=1), rtol=1e-14)


def test_a_controller_sees_and_drives_all(backend):
    """Closed loop; the loss of the scenario is that of its trajectory, and the rule finds a direction."""
    case = built(TEXT, backend)
    problem, context = case.problem, case.validation.context

    def run(params: Any, context: Any) -> Any:
        found = problem.simulate({}, context, problem.policy(params, case.buffers), record=True)
        return found.forces["drive"], found.final["evaders"]

    drive, end = (backend.numpy(v) for v in backend.compile(run, case.params, context)(case.params, context))
    assert drive.shape == (4, 4, 4)
    start = {name: backend.numpy(context[f"initial.{name}"]) for name in FIELDS}
    expected = numpy_final(start, drive, PUBLISHED, 1 / 15)
    assert relative(end, expected["evaders"]) < 1e-13
    direction = updated(case)["direction"]
    assert direction["controller/dense0.weight"].shape == (5, 24)
    assert all(np.any(value != 0) and np.all(np.isfinite(value)) for value in direction.values())


def test_starts_lie_where_the_options_say_and_follow_from_the_seed():
    parameters = GuidanceParameters(drivers=3, evaders=5)
    found = drawn(parameters, np.random.default_rng(0), 4000)
    assert [found[name].shape for name in FIELDS] == [(4000, 6), (4000, 6), (4000, 10), (4000, 10)]
    assert not np.any(found["driver_velocities"])
    assert not np.any(found["evader_velocities"])
    points = found["drivers"].reshape(4000, 3, 2)
    radius = np.hypot(*np.moveaxis(points, 2, 0))
    assert radius.min() >= 3
    assert radius.max() < 4
    # Uniform in r and in the angle: four standard errors.
    assert radius.mean() == pytest.approx(3.5, abs=4 / 12**0.5 / 12000**0.5)
    assert np.max(np.abs((points / radius[..., None]).mean(axis=(0, 1)))) < 4 * 0.5**0.5 / 12000**0.5
    evaders = found["evaders"].reshape(4000, 5, 2)
    # Not further apart than the square, and not from its middle by more than its half diagonal.
    assert np.all(np.ptp(evaders, axis=1) <= 1)
    assert np.ptp(evaders, axis=1).max() > 0.99
    radius = np.hypot(*np.moveaxis(evaders, 2, 0))
    assert radius.min() >= 1 - 0.5**0.5
    assert radius.max() <= 2 + 0.5**0.5
    again = drawn(parameters, np.random.default_rng(0), 4000)
    assert all(np.array_equal(found[name], again[name]) for name in FIELDS)
    options = ScatteredOptions(driver_radius=(5, 5), flock_radius=(0, 0), spread=0)
    other = SCATTERED.sample(None, parameters, options, np.random.default_rng(0), 10)
    assert not np.any(other["initial.evaders"])
    # Rounding of a sine and a cosine.
    assert np.hypot(*other["initial.drivers"].reshape(-1, 2).T) == pytest.approx(5, rel=1e-14)


# --- plugin and scenarios -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"pde.evaders": 0}, r"pde\.evaders: expected a number ≥ 1, got 0"),
        ({"pde.softening": 0}, r"pde\.softening: expected a number > 0, got 0"),
        ({"pde.centre": "middle"}, r"pde\.centre: .*sum"),
        ({"pde.flocking": "none"}, r"pde\.flocking: .*intended"),
        (
            {"data.driver_radius": [4, 3]},
            r"data\.driver_radius: expected \[from, to\] .*0 ≤ from ≤ to, got \[4, 3\]",
        ),
        ({"data.flock_radius": [-1, 3]}, r"data\.flock_radius: expected \[from, to\] with 0 ≤ from"),
        ({"time.dt": 0.6}, r"friction per step.*time\.dt"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, sentence):
    with pytest.raises(ScenarioError, match=sentence):
        scenario_from_text(TEXT.replace("pde: guidance_by_repulsion", "pde: {type: guidance_by_repulsion}"), overrides)


def test_the_loss_judges_positions_only():
    with pytest.raises(ScenarioError, match=r"'gathered' judges final\.evaders, trajectory\.evaders, not force\.drive"):
        scenario_from_text(TEXT.replace("trajectory.evaders", "force.drive"))


def test_the_drawing_shows_all_where_they_are():
    assert PLUGIN.drawing is not None
    state = {name: np.array(value) for name, value in STEP.items()}
    drawing = PLUGIN.drawing(GuidanceParameters(evaders=2), state)
    assert isinstance(drawing.shapes[0], Cross)
    assert drawing.shapes[0].centre == (0, 0)
    discs = [shape for shape in drawing.shapes if isinstance(shape, Disc)]
    assert len(discs) == len(drawing.shapes) - 1 == 4
    assert [d.centre for d in discs if d.label == "driver"] == [(3, 1), (-2, 3)]
    assert [d.centre for d in discs if d.label == "evader"] == [(1, 0.5), (1.5, 0)]
    (left, right), (low, high) = drawing.limits
    # Half a unit beyond the discs of the drivers and the origin.
    assert (left, right, high) == pytest.approx((-2.65, 3.65, 3.65))
    assert low == pytest.approx(-0.6)


@pytest.mark.parametrize(("drivers", "evaders", "trained"), [(2, 4, 13_004), (1, 2, 11_602)])
def test_the_shipped_scenario_has_the_published_size(drivers, evaders, trained):
    given = {"pde.drivers": drivers, "pde.evaders": evaders}
    described = describe(load_scenario(SCENARIOS / "guidance_by_repulsion.yaml", given))
    assert described.trained == trained
    assert described.controls[0].shape == (60, 2 * drivers)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_the_scenario_learns(tmp_path, backend):
    """A few updates of a smaller set."""
    small = {"data.train": 16, "data.validation": 16, "train.steps": 6, "train.validate_every": 2, "output.samples": 2}
    quick = {"update.optimizer.learning_rate": 1e-2, "output.plots": False, "run.backend": backend.name}
    run = execute(SCENARIOS / "guidance_by_repulsion.yaml", tmp_path, {**small, **quick})
    with run.stored:
        loss = run.metrics.validation_loss.dropna("step").values
        # Before training nobody is driven; 5.24 for another sample of starts.
        assert loss[0] == pytest.approx(5.24, abs=0.8)
        assert loss[-1] < 0.8 * loss[0]
        assert run.fields.evaders.dims == ("sample", "t", "evaders_component")
        assert run.fields.drive.dims == ("sample", "t", "drive_component")
