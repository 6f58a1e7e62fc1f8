"""Stable backpropagation through time: all flows against two-pass references, the vote, and what validation refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numeric_cases import Case, built, tree_relative, updating

from toolkit.core.backend import using
from toolkit.core.errors import DivergenceError, ScenarioError
from toolkit.physics.rollout import FULL, NETWORK, PHYSICS, STOPPED, GradientFlow
from toolkit.scenario.load import scenario_from_text
from toolkit.training.problem import batch_from_tree
from toolkit.training.rules.stable_bptt import StableBptt, agreement

CHAIN = """
name: case
pde: {type: oscillators, cubic_coupling: 1.0}
time: {steps: 5, dt: 0.3}
controls: {drive: {acts_on: force.drive}}
data: {type: uniform, validation: 3}
networks: {f: {type: mlp, layers: [4], activation: tanh, every_step: true, input: [state, target], output: drive}}
loss: {type: l2, on: final.state}
update: {type: stable_bptt, optimizer: {type: sgd, learning_rate: 1.0}}
train: {steps: 2, batch_size: 3}
run: {precision: float64}
"""
FIELD = """
name: case
grid: {cells: {x: 6, y: 4}, extent: {x: 3, y: 5}}
pde: {type: heat, diffusivity: 0.3}
time: {steps: 4, dt: 0.4}
controls: {push: {acts_on: force.temperature}}
data: {type: rectangle_pairs, half_size: [0, 1], validation: 3}
networks: {f: {type: conv_net, layers: [3], activation: tanh, every_step: true, input: [state, target], output: push}}
loss:
  - {type: l2, on: final.temperature}
  - {type: mean_square, on: trajectory.temperature, weight: 20.0}
  - {type: mean_square, on: force.temperature, weight: 3.0}
update: {type: stable_bptt, optimizer: {type: sgd, learning_rate: 1.0}}
train: {steps: 2, batch_size: 3}
run: {precision: float64}
"""
START = (
    CHAIN.replace(
        "controls: {drive: {acts_on: force.drive}}",
        "controls: {drive: {acts_on: force.drive}, start: {acts_on: initial.state}}",
    )
    .replace("networks: {f: {", "networks: {g: {type: mlp, layers: [3], activation: tanh, output: start}, f: {")
    # Judged in the first step too, the only one whose gradient a stopped flow lets through to the start.
    .replace(
        "loss: {type: l2, on: final.state}",
        "loss: [{type: l2, on: final.state}, {type: mean_square, on: trajectory.state}]",
    )
)
TEXTS = {"ODE, final state": CHAIN, "field, all states, penalty": FIELD, "start unknown too": START}
FLOWS = {"full": FULL, "physics": PHYSICS, "stopped": STOPPED, "network": NETWORK}


@pytest.fixture(params=TEXTS)
def text(request) -> str:
    return TEXTS[request.param]


@cache
def rule(text: str, library: str, **changes: Any) -> tuple[Case, Callable[[Any], dict[str, Any]]]:
    """(a case, `updating` it), once for all tests."""
    with using(library, "cpu", "float64", "float64") as backend:
        case = built(text, backend, **changes)
        return case, updating(case)


@cache
def updated(text: str, library: str, **changes: Any) -> dict[str, Any]:
    """What the rule finds at the start."""
    case, update = rule(text, library, **changes)
    return update(case.params)


@cache
def two_pass_program(text: str, library: str, flow: GradientFlow) -> Callable[[Any], Any]:
    """θ -> (loss, direction) from a rollout of its own, whose edges are stopped where the gates are 0."""
    with using(library, "cpu", "float64", "float64") as b:
        case = built(text, b)
        problem, batch = case.problem, case.validation

        def objective(params):
            x, _ = problem.predict(params, case.buffers, batch, training=True)
            y = problem.observe(x, batch.context, problem.policy(params, case.buffers, batch.targets), flow)
            return b.xp.sum(problem.loss(y, batch.targets)), ()

        return b.compile(lambda params: b.value_and_gradient(objective, params)[::2], case.params)


def two_pass(text: str, backend, flow: GradientFlow, params: Any = None) -> tuple[float, dict[str, np.ndarray]]:
    """(loss, direction) of that program, at the start unless parameters are given."""
    program = two_pass_program(text, backend.name, flow)
    value, gradient = program(rule(text, backend.name)[0].params if params is None else params)
    return float(value), {name: backend.numpy(g) for name, g in gradient.items()}


def reference_flow(text: str, flow: str) -> GradientFlow:
    """The gates of a flow; a start that is unknown too keeps its gradient in the first step."""
    gates = FLOWS[flow]
    if text != START or flow in ("full", "physics"):
        return gates
    return GradientFlow((gates.network_input,) * 5, (1.0, 0.0, 0.0, 0.0, 0.0))


def vote(modified, full):
    return {name: np.where(np.sign(m) == np.sign(full[name]), m, 0.0) for name, m in modified.items()}


def inner(a, b) -> float:
    return sum(float(np.sum(a[name] * b[name])) for name in a)


@pytest.mark.parametrize("flow", FLOWS)
def test_single_flows_are_the_two_pass_reference(backend, text, flow):
    found = updated(text, backend.name, update__flow=flow)
    loss, expected = two_pass(text, backend, reference_flow(text, flow))
    # The same operations in the same order; a compiler may fuse them differently within one larger program.
    assert tree_relative(found["direction"], expected) < (0 if backend.name == "torch" else 1e-13) + 1e-300
    assert found["loss"][""] == pytest.approx(loss, rel=1e-14)


def test_combined_is_the_vote_over_two_passes_and_the_forward_pass_is_shared(backend, text, request):
    found = updated(text, backend.name)["direction"]
    (loss, modified), (other_loss, full) = two_pass(text, backend, PHYSICS), two_pass(text, backend, FULL)
    assert loss == other_loss
    # On torch bit by bit. On JAX both backward passes are one mapped one, whose products round differently.
    assert tree_relative(found, vote(modified, full)) <= (0 if backend.name == "torch" else 1e-12)
    # The case is one in which the two differ, and in the ODE in signs, too.
    assert tree_relative(modified, full) > 1e-3
    kept = np.mean(np.concatenate([(value != 0).ravel() for value in found.values()]))
    assert 0.2 < kept < 1 or "field" in request.node.name


def test_loss_does_not_depend_on_the_flow(backend, text):
    losses = {flow: float(updated(text, backend.name, update__flow=flow)["loss"][""]) for flow in FLOWS}
    losses["combined"] = float(updated(text, backend.name)["loss"][""])
    # Bit-equal on torch; compiled programs may sum in another order.
    assert np.ptp(list(losses.values())) <= (0 if backend.name == "torch" else 1e-15) * losses["full"]


@pytest.mark.parametrize("flow", [*FLOWS, "combined"])
def test_only_full_is_a_derivative(backend, flow):
    changes = {} if flow == "combined" else {"update__flow": flow}
    case, b = rule(CHAIN, backend.name)[0], backend
    found = updated(CHAIN, backend.name, **changes)["direction"]
    rng, h, ends = np.random.default_rng(0), 1e-6, []
    direction = {name: rng.standard_normal(value.shape) for name, value in found.items()}
    for sign in (1, -1):
        moved = {name: value + b.array(sign * h * direction[name]) for name, value in case.params.items()}
        ends.append(two_pass(CHAIN, backend, FULL, moved)[0])
    numeric = (ends[0] - ends[1]) / (2 * h)
    error = abs(numeric - inner(direction, found)) / abs(numeric)
    # Central differences of a loss near 1: rounding over h is some 1e-9.
    assert error < 1e-7 if flow == "full" else error > 1e-2


@pytest.mark.parametrize("seed", range(4))
def test_combined_never_climbs(backend, seed):
    """⟨G, C⟩ ≥ max(0, ⟨G, M⟩), whatever the weights."""
    case, update = rule(CHAIN, backend.name)
    rng = np.random.default_rng(seed)
    params = {n: backend.array(rng.normal(0, 1.5, p.shape)) for n, p in case.params.items()}
    (_, modified), (_, full) = two_pass(CHAIN, backend, PHYSICS, params), two_pass(CHAIN, backend, FULL, params)
    combined = update(params)["direction"]
    assert inner(full, combined) >= max(0.0, inner(full, modified)) * (1 - 1e-12)


def test_with_an_output_layer_of_zeros_all_flows_but_the_stopped_ones_agree(backend):
    case, update = rule(CHAIN, backend.name)
    params = {**case.params, "f/out.weight": 0 * case.params["f/out.weight"]}
    (_, modified), (_, full) = two_pass(CHAIN, backend, PHYSICS, params), two_pass(CHAIN, backend, FULL, params)
    combined = update(params)["direction"]
    for name in full:
        assert np.array_equal(modified[name], full[name])
        # A mapped backward pass rounds differently.
        assert combined[name] == pytest.approx(full[name], rel=1e-12, abs=1e-14)
        assert np.any(full[name]) == name.startswith("f/out.")


def test_one_compiled_program_serves_all_gates(backend):
    case = built(CHAIN, backend)
    problem, batch = case.problem, case.validation

    def gradient(params, alpha, beta):
        def objective(params):
            policy = problem.policy(params, case.buffers, batch.targets)
            y = problem.observe({}, batch.context, policy, GradientFlow(alpha, beta))
            return backend.xp.sum(problem.loss(y, batch.targets)), ()

        return backend.value_and_gradient(objective, params)[2]

    def number(value):
        return backend.array(np.array(value), "physics")

    program = backend.compile(gradient, case.params, number(1.0), number(1.0))
    for flow in FLOWS.values():
        found = program(case.params, number(flow.network_input), number(flow.physics_state))
        expected = two_pass(CHAIN, backend, flow)[1]
        assert tree_relative({n: backend.numpy(g) for n, g in found.items()}, expected) < 1e-13


def test_a_flow_per_step_and_truncation_are_gates_per_step(backend):
    mixed = ("physics", "full", "stopped", "network", "full")
    found = updated(CHAIN, backend.name, update__flow=mixed)["direction"]
    gates = GradientFlow((0.0, 1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 0.0, 1.0))
    assert tree_relative(found, two_pass(CHAIN, backend, gates)[1]) < 1e-13
    found = updated(CHAIN, backend.name, update__flow="full", update__truncate=2)["direction"]
    gates = GradientFlow((1.0, 1.0, 0.0, 1.0, 0.0), (1.0, 1.0, 0.0, 1.0, 0.0))
    full = two_pass(CHAIN, backend, gates)[1]
    assert tree_relative(found, full) < 1e-13
    found = updated(CHAIN, backend.name, update__truncate=2)["direction"]
    modified = two_pass(CHAIN, backend, GradientFlow(0.0, gates.physics_state))[1]
    assert tree_relative(found, vote(modified, full)) < 1e-12


def test_truncation_after_every_step_is_the_stopped_flow(backend):
    found = updated(CHAIN, backend.name, update__flow="full", update__truncate=1)["direction"]
    assert tree_relative(found, updated(CHAIN, backend.name, update__flow="stopped")["direction"]) < 1e-13


def test_an_unknown_start_keeps_its_gradient_where_the_loop_is_cut(backend):
    """Stopped: the start answers for the first state, the controller for the next state alone."""
    found = updated(START, backend.name, update__flow="stopped")["direction"]
    gates = GradientFlow((0.0,) * 5, (1.0, 0.0, 0.0, 0.0, 0.0))
    assert tree_relative(found, two_pass(START, backend, gates)[1]) < 1e-13
    # Truncation begins after the start: over the whole length it cuts nothing.
    found = updated(START, backend.name, update__flow="full", update__truncate=5)["direction"]
    assert tree_relative(found, two_pass(START, backend, FULL)[1]) < 1e-13


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("flow", ["combined", "full"])
def test_rematerialisation_changes_nothing(backend, flow, length):
    """5 steps in stretches that divide them, that leave a rest, and that are longer."""
    text = FIELD.replace("steps: 4", "steps: 5")
    expected = updated(text, backend.name, update__flow=flow)
    text = text.replace("run: {", f"run: {{rematerialise: {length}, ")
    found = updated(text, backend.name, update__flow=flow)
    assert found["loss"][""] == pytest.approx(expected["loss"][""], rel=1e-14)
    # The same operations once more; compiled within other programs on JAX.
    assert tree_relative(found["direction"], expected["direction"]) < 1e-13


def test_the_vote_comes_before_the_clip_and_is_measured(backend):
    case = built(CHAIN, backend, update__clip={"value": 0.05})
    direction = updated(CHAIN, backend.name)["direction"]
    after, metrics = case.trainer.step(case.trainer.start(case.params, case.buffers), case.validation)
    moved = {name: backend.numpy(case.params[name]) - backend.numpy(after.params[name]) for name in direction}
    assert max(np.max(np.abs(value)) for value in direction.values()) > 0.05
    # θ − (θ − η clip C) rounds at the size of θ.
    assert all(moved[n] == pytest.approx(np.clip(direction[n], -0.05, 0.05), abs=1e-15) for n in direction)
    (_, modified), (_, full) = two_pass(CHAIN, backend, PHYSICS), two_pass(CHAIN, backend, FULL)
    norms = [inner(tree, tree) ** 0.5 for tree in (modified, full, direction)]
    assert [metrics[n] for n in ("physics_norm", "full_norm", "direction_norm")] == pytest.approx(norms, rel=1e-12)
    assert metrics["cosine"] == pytest.approx(inner(modified, full) / norms[0] / norms[1], rel=1e-11)
    kept = np.concatenate([(value != 0).ravel() for value in direction.values()])
    assert metrics["kept_share"] == pytest.approx(np.mean(kept), rel=1e-12)


def test_zero_agrees_with_zero_and_with_nothing_else(backend):
    m, g = np.array([1.0, -2.0, 0.0, 0.0, 3.0, -4.0]), np.array([0.5, 1.0, 0.0, 2.0, 0.0, -np.inf])
    found = agreement(backend, {"p": backend.array(m)}, {"p": backend.array(g)})["p"]
    assert np.array_equal(backend.numpy(found), [1.0, 0.0, 0.0, 0.0, 0.0, -4.0])


def test_cosine_of_nothing_is_zero(backend):
    """A chain at rest that shall stay at rest, and a controller that does nothing: no residual, so all flows are 0."""
    case = built(CHAIN, backend)
    zeros = {name: 0 * value for name, value in case.params.items()}
    still = {kind: {k: 0 * v for k, v in group.items()} for kind, group in case.validation.tree().items()}

    def measured(tree: Any) -> Any:
        return dict(StableBptt()(case.problem, zeros, case.buffers, batch_from_tree(tree)).metrics)

    metrics = backend.compile(measured, still)(still)
    assert [float(metrics[name]) for name in ("physics_norm", "full_norm", "cosine", "kept_share")] == [0, 0, 0, 0]


TOY = """
name: case
pde: polynomial_toy
time: {steps: 60}
controls: {push: {acts_on: force.push}}
data: {type: point, start: 1.0, train: 1, validation: 1}
networks: {f: {type: linear, weight: [[1e6, -1e6]], input: state.powers, output: push, every_step: true}}
loss: {type: l2, on: final.position}
update: {type: stable_bptt, optimizer: {type: sgd, learning_rate: 1.0}}
train: {steps: 2, batch_size: 1}
"""


def test_a_gradient_that_overflows_stops_the_run_and_says_what_to_do(backend):
    """θ₁x² + θ₂x is 0 at x = 1 and its derivative 1e6: states stay, but 60 factors of 1e6 overflow.

    Signs of what is not a number would otherwise drop every component in silence.
    """
    case = built(TOY, backend)
    with pytest.raises(DivergenceError, match=r"step 1: (full_norm|physics_norm) is (nan|inf).*Set update.truncate"):
        case.trainer.step(case.trainer.start(case.params, case.buffers), case.validation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"update.optimizer.type": "lbfgs"}, "not the gradient of one"),
        ({"update.flow": ["physics", "full"]}, "one word for each of time.steps = 5, got 2"),
        ({"update.flow": "sideways"}, "update.flow"),
        ({"update.truncate": 6}, "at most time.steps = 5"),
        ({"update.truncate": 0}, "update.truncate"),
        ({"networks.f.every_step": False, "networks.f.input": "target"}, "needs a network in the loop"),
    ],
)
def test_validation_refuses_what_cannot_work(change, message):
    overrides = dict(change)
    text = CHAIN
    if overrides.pop("update.optimizer.type", None):
        text = text.replace("{type: sgd, learning_rate: 1.0}", "lbfgs").replace(
            "validation: 3", "train: 3, validation: 3"
        )
    with pytest.raises(ScenarioError, match=message):
        scenario_from_text(text, overrides)


def test_full_alone_has_a_potential():
    text = CHAIN.replace("{type: sgd, learning_rate: 1.0}", "lbfgs").replace("validation: 3", "train: 3, validation: 3")
    assert scenario_from_text(text, {"update.flow": "full"}).sections.update is not None
