"""Partial observation and encoders: networks that see some fields of the state, or a grid and give values off it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numeric_cases import built, relative
from whole_runs import register

from toolkit import FieldSpec, NoOptions, PDEPlugin, Sampler
from toolkit.core.errors import ScenarioError
from toolkit.core.params import subtree
from toolkit.networks.plugin import NetworkShape
from toolkit.physics.rollout import FULL, PHYSICS
from toolkit.scenario.layouts import network_shape
from toolkit.scenario.load import scenario_from_text

CELLS = (9, 7)


@dataclass(frozen=True)
class Bath:
    """u' = u + dt (q + heater), and the thermostat w' = w + dt heater, a number; v' = 0.9 v."""

    def step(self, state: Any, inputs: Any, t: Any, dt: float) -> dict[str, Any]:
        heater = inputs.force.get("heater", 0.0)
        u = state["u"] + dt * (inputs.force.get("u", 0.0) + heater)
        return {"u": u, "w": state["w"] + dt * heater, "v": 0.9 * state["v"]}


def _drawn(grid: Any, parameters: Any, options: Any, rng: Any, count: int) -> dict[str, np.ndarray]:
    shapes = {"u": CELLS, "v": (*CELLS, 2), "w": ()}
    fields = {f"initial.{name}": rng.standard_normal((count, *shape)) for name, shape in shapes.items()}
    return {**fields, "target.u": rng.standard_normal((count, *CELLS))}


PLUGIN = PDEPlugin(
    name="bath",
    summary="heated bath",
    equation="u' = u + dt q",
    parameters=NoOptions,
    fields=lambda parameters, grid: (
        FieldSpec("u", "temperature"),
        FieldSpec("w", "thermostat", on_grid=False),
        FieldSpec("v", "flow", components=("x", "y")),
    ),
    build=lambda grid, parameters: Bath(),
    dimensions=(2,),
    forces=("u", "heater"),
    actions=lambda parameters, grid: (FieldSpec("heater", "heater", on_grid=False),),
    samplers={"noise": Sampler("noise", _drawn)},
)
TEXT = """
name: case
grid: {cells: {x: 9, y: 7}, extent: {x: 9, y: 7}}
pde: bath
time: {steps: 3, dt: 0.5}
controls: {q: {acts_on: force.u}}
data: {type: noise, validation: 2}
networks: {f: {type: conv_net, layers: [3], activation: tanh, input: state, output: q, every_step: true}}
loss: {type: l2, on: final.u}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 2}
run: {precision: float64}
"""
ENCODER = ("type: conv_net, layers: [3], activation: tanh", "type: conv_encoder, filters: [3], dense: [4]")
DEEP = (ENCODER[0], "type: conv_encoder, filters: [3, 3, 3]")
WITHOUT_DATA = (("data: {type: noise, validation: 2}\n", ""), ("type: l2", "type: mean_square"))
HEATER = ("force.u", "force.heater")


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    register(monkeypatch, "pdes", bath=f"{__name__}:PLUGIN")


def text(*changes: tuple[str, str], source: str = "state") -> str:
    result = TEXT
    for old, new in (*changes, ("input: state", f"input: {source}")):
        assert old in result, old
        result = result.replace(old, new)
    return result


def channels(value: np.ndarray, components: bool) -> np.ndarray:
    """(B, channels, x, y) of (B, x, y, [components])."""
    return np.moveaxis(value, -1, 1) if components else value[:, None]


def replayed(backend, case) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """(force of every step (B, t, …), states before every step) of a closed loop."""
    problem, batch = case.problem, case.validation
    policy = problem.policy(case.params, case.buffers, {**batch.context, **batch.targets})
    found = problem.simulate({}, batch.context, policy, record=True)
    start = {name: backend.numpy(value) for name, value in problem.initial_state({}, batch.context).items()}
    later = {name: backend.numpy(value) for name, value in found.states.items()}
    states = [start] + [{name: value[:, k] for name, value in later.items()} for k in range(2)]
    (force,) = found.forces.values()
    return backend.numpy(force), states


def network(backend, case, x: np.ndarray) -> np.ndarray:
    return backend.numpy(case.problem.networks[0].apply(subtree(case.params, "f"), {}, backend.array(x), False)[0])


SEEN = [
    # Without `w` all that is seen and given lies on the grid.
    (
        "[state.u, state.v]",
        NetworkShape(3, 1, CELLS, True),
        lambda s: [channels(s["u"], False), channels(s["v"], True)],
    ),
    (
        "[state.v, state.u]",
        NetworkShape(3, 1, CELLS, True),
        lambda s: [channels(s["v"], True), channels(s["u"], False)],
    ),
    ("state.v", NetworkShape(2, 1, CELLS, True), lambda s: [channels(s["v"], True)]),
    ("[state.u, target]", NetworkShape(2, 1, CELLS, True), None),
]


@pytest.mark.parametrize(("source", "shape", "expected"), SEEN)
def test_a_network_in_the_loop_sees_the_fields_named_in_their_order(backend, source, shape, expected):
    case = built(text(source=source), backend)
    sections = scenario_from_text(text(source=source)).sections
    assert network_shape(sections, sections.networks["f"]) == shape
    force, states = replayed(backend, case)
    target = backend.numpy(case.validation.targets["final.u"])
    for k, state in enumerate(states):
        seen = expected(state) if expected else [channels(state["u"], False), channels(target, False)]
        out = network(backend, case, np.concatenate(seen, axis=1))
        # The same network on the same numbers, in the program of the rollout.
        assert relative(force[:, k], out[:, 0]) < 1e-12
    assert np.std(force) > 1e-3


def test_parts_on_and_off_the_grid_are_one_vector(backend):
    mlp = (ENCODER[0], "type: mlp, layers: [3]")
    case = built(text(mlp, HEATER, source="[state.w, state.u]"), backend)
    force, states = replayed(backend, case)
    for k, state in enumerate(states):
        seen = np.concatenate([state["w"][:, None], state["u"].reshape(2, -1)], axis=1)
        assert relative(force[:, k], network(backend, case, seen)[:, 0]) < 1e-12


def test_the_gate_before_the_controller_holds_for_the_fields_it_sees(backend):
    """u' = u + dt c: nothing flows back through v, which no control changes; through u it does."""
    for source, same in (("state.v", True), ("state.u", False)):
        case = built(text(source=source), backend)
        full, physics = (gradient(backend, case, flow) for flow in (FULL, PHYSICS))
        assert (relative(physics, full) < 1e-12) == same
        assert np.std(full) > 1e-3


def gradient(backend, case, flow) -> np.ndarray:
    """∂L/∂θ with gates, in one vector."""

    def loss(params: Any) -> Any:
        policy = case.problem.policy(params, case.buffers)
        y = case.problem.observe({}, case.validation.context, policy, flow)
        return backend.xp.sum(case.problem.loss(y, case.validation.targets)), ()

    found = backend.compile(lambda params: backend.value_and_gradient(loss, params)[2], case.params)(case.params)
    return np.concatenate([backend.numpy(found[name]).ravel() for name in sorted(found)])


# --- encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["state.u", "[state.v, state.u, time]"])
def test_an_encoder_in_the_loop_sees_the_grid_and_gives_a_number(backend, source):
    case = built(text(ENCODER, HEATER, source=source), backend)
    sections = scenario_from_text(text(ENCODER, HEATER, source=source)).sections
    assert network_shape(sections, sections.networks["f"]) == NetworkShape(1 if source[0] == "s" else 4, 1, CELLS, True)
    force, states = replayed(backend, case)
    assert force.shape == (2, 3)
    for k, state in enumerate(states):
        seen = channels(state["u"], False)
        if "time" in source:
            seen = np.concatenate([channels(state["v"], True), seen, np.full_like(seen, k / 3)], axis=1)
        assert relative(force[:, k], network(backend, case, seen)[:, 0]) < 1e-12


def test_an_encoder_in_open_loop_gives_all_steps_and_fields_as_a_vector(backend):
    """Here q (t, x, y) beside the heater (t,)."""
    controls = ("{q: {acts_on: force.u}}", "{h: {acts_on: force.heater}, q: {acts_on: force.u}}")
    network_text = ("output: q, every_step: true", "output: [h, q]")
    case = built(text(ENCODER, controls, network_text, source="target"), backend)
    x, _ = case.problem.predict(case.params, case.buffers, case.validation, training=False)
    out = network(backend, case, channels(backend.numpy(case.validation.targets["final.u"]), False))
    assert out.shape == (2, 3 + 3 * 9 * 7)
    assert np.array_equal(backend.numpy(x["force.heater"]), out[:, :3])
    assert np.array_equal(backend.numpy(x["force.u"]), out[:, 3:].reshape(2, 3, *CELLS))


@pytest.mark.parametrize("every_step", [True, False])
def test_an_encoder_gives_a_field_as_all_its_values(backend, every_step):
    """Although all that it sees and gives lies on the grid."""
    changes = [] if every_step else [(", every_step: true", "")]
    case = built(text(ENCODER, *changes, source="state.u" if every_step else "target"), backend)
    if every_step:
        force, states = replayed(backend, case)
        for k, state in enumerate(states):
            out = network(backend, case, channels(state["u"], False))
            assert relative(force[:, k], out.reshape(2, *CELLS)) < 1e-12
    else:
        x, _ = case.problem.predict(case.params, case.buffers, case.validation, training=False)
        out = network(backend, case, channels(backend.numpy(case.validation.targets["final.u"]), False))
        assert np.array_equal(backend.numpy(x["force.u"]), out.reshape(2, 3, *CELLS))


def test_an_encoder_learns_through_the_physics(backend):
    case = built(text(ENCODER, HEATER, source="state.u"), backend, update__optimizer__learning_rate=1e-3)
    state = case.trainer.start(case.params, case.buffers)
    losses = []
    for k in range(3):
        state, record = case.trainer.step(state, case.validation)
        losses.append(float(record["train_loss"]))
        assert k == 0 or losses[k] < losses[k - 1]


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "source", "message"),
    [
        ((), "state.uu", r"networks\.f\.input: PDE 'bath' has no field 'uu'; did you mean 'u'"),
        ((), "[state, state.u]", "state.u is a part of state, which is seen too; remove one of the two"),
        ((), "[state.u, state.u]", "each of state.u once"),
        ((), "initial.u", "sees the current state"),
        ((), "[state.u, initial.u]", "a network with `every_step: true` sees the state, not initial.u"),
        (((", every_step: true", ""),), "state.u", "only a network with `every_step: true` sees state.u"),
        (((", every_step: true", ""),), "time", "only a network with `every_step: true` sees time"),
        (
            WITHOUT_DATA,
            "state.u",
            r"networks: nothing says in which states the loop starts; give `data` \(file, noise\)",
        ),
        ((ENCODER, HEATER), "state", "it sees fields on a grid, and a part of its input is not"),
        ((ENCODER, HEATER), "state.w", "it sees fields on a grid, and a part of its input is not"),
        ((DEEP, HEATER), "state.u", r"layer 'conv2': a kernel of 3 cells .* fit into \(1, 1\) cells"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, source, message):
    with pytest.raises(ScenarioError, match=message):
        scenario_from_text(text(*changes, source=source))
