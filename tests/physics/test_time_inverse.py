"""Inverse solvers that go backward through time: exactness, least effort, agreement of objectives, closed loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numeric_cases import built, inverse_problem, relative, updated
from phiml import math

from toolkit.physics.inverse import natives, tensors
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import PHYSICS
from toolkit.physics.time_inverse import invert_over_time
from toolkit.training.problem import Batch

FORCE, START = "force.temperature", "initial.temperature"


def heat(
    *,
    solver: str = "least_heating",
    steps: int = 3,
    diffusivity: float = 0.3,
    also: str = "",
    update: str | None = None,
    inputs: str = "[state, target, time]",
) -> str:
    """Heating per step by a network in the loop; cells are not square and dx is not 1."""
    network = f"{{type: conv_net, layers: [3], activation: tanh, batch_norm: false, input: {inputs}, every_step: true"
    start = "start: {type: conv_net, layers: [2], batch_norm: false, input: target, output: u0}" if also else ""
    return f"""
name: case
grid: {{cells: {{x: 6, y: 5}}, extent: {{x: 9.0, y: 4.0}}}}
pde: {{type: heat, diffusivity: {diffusivity}, match_mean: false}}
time: {{steps: {steps}, dt: 0.4}}
controls:
  heating: {{acts_on: force.temperature}}
  {also}
data: {{type: rectangle_pairs, half_size: [0.3, 1.9], validation: 3}}
networks:
  loop: {network}, output: heating}}
  {start}
loss: {{type: l2, on: final.temperature}}
update: {{type: {update or f"sip, inverse_solver: {solver}"}, optimizer: {{type: sgd, learning_rate: 0.1}}}}
train: {{steps: 2, batch_size: 3}}
"""


BOTH = "u0: {acts_on: initial.temperature}"


def actors(case: Any) -> dict[str, Any]:
    """Random controls of all kinds the case has, by key."""
    rng, b = np.random.default_rng(5), case.problem.backend
    return {c.key: b.array(rng.standard_normal((3, *c.layout.shape)), "physics") for c in case.problem.controls}


def context_of(case: Any) -> dict[str, Any]:
    known = {c.key for c in case.problem.controls}
    return {key: value for key, value in case.validation.context.items() if key not in known}


def judged_always(case: Any) -> Any:
    """The case with its loss on the whole trajectory."""
    problem, key = case.problem, "trajectory.temperature"
    layout = problem.control_layouts[FORCE]
    terms = (replace(problem.terms[0], key=key),)
    return replace(case, problem=replace(problem, terms=terms, observations={key: layout}, _traced={}))


def inverted(case: Any, x: dict[str, Any], target: dict[str, Any], **solver: Any) -> dict[str, np.ndarray]:
    """x̃ by the case's solver, one program on JAX."""
    plugin, options = case.problem.solver
    problem = replace(case.problem, solver=(plugin, options.model_copy(update=solver)))
    context, b = context_of(case), problem.backend

    def function(x: Any, target: Any, context: Any) -> Any:
        return problem.invert(x, problem.observe(x, context), target, context)

    found = b.compile(function, x, target, context)(x, target, context)
    return {key: b.numpy(value) for key, value in found.items()}


@pytest.mark.parametrize("also", ["", BOTH])
def test_least_heating_reaches_the_target_with_the_least_change(backend, also):
    case = built(heat(also=also), backend)
    x, context = actors(case), context_of(case)
    target = {"final.temperature": case.validation.targets["final.temperature"]}
    found = inverted(case, x, target)
    reached = case.problem.observe({k: backend.array(v) for k, v in found.items()}, context)
    # A direct formula per mode in float64: rounding of a few FFTs, amplified by at most 1/b ~ 10.
    assert relative(backend.numpy(reached["final.temperature"]), backend.numpy(target["final.temperature"])) < 1e-11
    # Undamped Gauss–Newton from the same x gives the solution of least norm of all controls together.
    other = built(heat(also=also, solver="{type: gauss_newton, damping: 0.0, tolerance: 1e-13}"), backend)
    least = inverted(other, x, target)
    for key in found:
        assert relative(found[key], least[key]) < 1e-8, key


def test_cheap_changes_of_the_start_take_more_of_the_work(backend):
    case = built(heat(also=BOTH), backend)
    x = actors(case)
    target = {"final.temperature": case.validation.targets["final.temperature"]}
    moved = {}
    for weight in (1e-6, 1.0, 1e6):
        found = inverted(case, x, target, state_weight=weight)
        moved[weight] = [float(np.sum((found[key] - backend.numpy(x[key])) ** 2)) for key in (START, FORCE)]
    assert moved[1e-6][0] < 1e-6 * moved[1e-6][1] < moved[1.0][1] * 1e-3
    assert moved[1e6][1] < 1e-3 * moved[1.0][1]


def test_objectives_that_agree_are_not_counted_twice(backend):
    # Without diffusion an extra constant heating of every step changes the state linearly in time, and a trajectory
    # of targets that it produces is reached at once; summed instead of averaged wishes would overshoot.
    case = judged_always(built(heat(steps=5, diffusivity=1e-12), backend))
    x, context = actors(case), context_of(case)
    extra = np.random.default_rng(1).standard_normal((3, 1, 6, 5)) * np.ones((1, 5, 1, 1))
    wanted = {FORCE: x[FORCE] + backend.array(extra)}
    target = case.problem.observe(wanted, context)
    found = inverted(case, x, target)
    # The diffusivity of 1e-12 and rounding.
    assert relative(found[FORCE], backend.numpy(wanted[FORCE])) < 1e-9


def test_a_field_that_is_judged_at_the_end_alone_is_not_held_by_one_that_is_judged_always(backend):
    # s' = s + c for two fields that do not meet: each force takes its share, and v reaches its target at once.
    b, steps, scalar, per_step = backend, 4, Layout(), Layout(steps=4)
    start = {name: b.zeros((2,)) for name in ("u", "v")}

    def trajectory(x: Any, context: Any) -> dict[str, Any]:
        forces = {name: x[f"force.{name}"] for name in start}
        sums = {n: [b.xp.sum(c[:, :t], axis=1) if t else start[n] for t in range(steps + 1)] for n, c in forces.items()}
        return {name: b.xp.stack(values, axis=1) for name, values in sums.items()}

    def invert_step(state: Any, inputs: Any, after: Any, target: Any, step: Any) -> Any:
        share = {name: (target[name] - after[name]) / (step + 1) for name in state}
        before = {name: state[name] + step * share[name] for name in state}
        return before, {name: inputs.force[name] + share[name] for name in state}

    problem = replace(
        inverse_problem(b, lambda x: x, 1, 1),
        steps=steps,
        trajectory=trajectory,
        controls={"force.u": per_step, "force.v": per_step},
        observations={"trajectory.u": per_step, "final.v": scalar},
        states={"u": scalar, "v": scalar},
    )
    zero, ramp = b.zeros((2, steps)), b.array(np.outer([1.0, -2.0], np.arange(1.0, 5.0)))
    x = tensors({"force.u": zero, "force.v": zero}, problem.controls)
    y = tensors({"trajectory.u": zero, "final.v": b.zeros((2,))}, problem.observations)
    wanted = tensors({"trajectory.u": ramp, "final.v": b.array(np.array([8.0, 4.0]))}, problem.observations)
    found = natives(invert_over_time(problem, invert_step)(x, y, wanted), problem.controls)
    # Sums of a few small numbers.
    assert np.allclose(b.numpy(found["force.u"]), [[1.0] * 4, [-2.0] * 4], atol=1e-13)
    assert np.allclose(b.numpy(found["force.v"]), [[2.0] * 4, [1.0] * 4], atol=1e-13)


def test_a_trajectory_is_approached_with_diffusion(backend):
    case = judged_always(built(heat(steps=5), backend))
    x, context = actors(case), context_of(case)
    rng = np.random.default_rng(2)
    target = case.problem.observe({FORCE: x[FORCE] + backend.array(rng.standard_normal((3, 5, 6, 5)))}, context)
    losses = []
    for _ in range(4):
        losses.append(float(np.mean(backend.numpy(case.problem.loss(case.problem.observe(x, context), target)))))
        x = {key: backend.array(value) for key, value in inverted(case, x, target).items()}
    # Not exact, because averages of objectives are not least squares: measured 0.1, then 0.6 per call.
    assert losses[1] < 0.3 * losses[0]
    assert losses[1] > losses[2] > losses[3]


def test_in_a_loop_the_forces_are_those_of_the_rollout(backend):
    case = built(heat(), backend)
    problem, batch = case.problem, case.validation
    policy = problem.policy(case.params, case.buffers, batch.targets)
    trajectory = problem.simulate({}, batch.context, policy, record=True)
    met = problem.states_met(trajectory, {}, batch.context)
    again = problem.replay(case.params, case.buffers, batch.targets, met)
    # The same numbers through a batch of another size: rounding of a convolution.
    assert relative(backend.numpy(again[FORCE]), backend.numpy(trajectory.forces["temperature"])) < 1e-13
    assert np.std(backend.numpy(again[FORCE])) > 1e-3


def test_with_the_gradient_as_solver_it_is_dp_with_the_observation_path_stopped(backend):
    # The solver's ∂L/∂c_t goes through the physics alone, the proxy's ∂c_t/∂θ through the network alone.
    case = built(heat(solver="gradient"), backend)
    problem, batch = case.problem, case.validation

    def stopped(params: Any) -> Any:
        policy = problem.policy(params, case.buffers, batch.targets)
        y = problem.observe({}, batch.context, policy, PHYSICS)
        return backend.xp.sum(problem.loss(y, batch.targets)), ()

    expected = backend.value_and_gradient(stopped, case.params)[2]
    found = updated(case)["direction"]
    for name, value in found.items():
        # Two ways to add the same products: rounding.
        assert relative(value, backend.numpy(expected[name])) < 1e-10, name


@pytest.mark.parametrize("solver", ["least_heating", "gauss_newton"])
def test_nothing_is_differentiated_through_the_physics_in_a_loop(backend, solver):
    case = built(heat(solver=solver, steps=2), backend)
    whole = updated(case)

    class Stopped:
        """The heat step with a stopped gradient, but for solvers, which see the whole one."""

        def step(self, state: Any, inputs: Any, t: Any, dt: float) -> Any:
            new = case.problem.rollout.pde.step(state, inputs, t, dt)
            return {name: math.stop_gradient(value) for name, value in new.items()}

    rollout = replace(case.problem.rollout, pde=Stopped(), _traced={})
    assert case.problem.solver is not None
    plugin, options = case.problem.solver
    solver_of_whole = replace(
        plugin, build=lambda problem, o: plugin.build(case.problem.inverse_problem(problem.context), o)
    )
    stopped = replace(case.problem, rollout=rollout, solver=(solver_of_whole, options), _traced={})
    found = updated(replace(case, problem=stopped))
    for name, value in found["direction"].items():
        assert relative(value, whole["direction"][name]) < 1e-12, name


def test_a_start_and_a_force_learn_together(backend):
    case = built(heat(also=BOTH, inputs="state"), backend)
    update = updated(case)
    assert set(update["direction"]) == set(case.params)
    assert all(np.any(value != 0) for value in update["direction"].values())
    assert {START, FORCE} <= set(update["controls"])


BURGERS = """
name: case
grid: {cells: {x: 64}, extent: {x: 2.0}}
pde: {type: burgers, viscosity: 0.01, scheme: semi_lagrangian}
time: {steps: STEPS, dt: 1/32}
controls:
  correction: {acts_on: force.velocity}
  ALSO
data: {type: fine_solution, modes: 2, amplitude: 0.5, validation: 3}
networks:
  corrector: {type: conv_net, layers: [4], batch_norm: false, input: state, output: correction, every_step: true}
  START
loss: {type: l2, on: trajectory.velocity}
update: {type: sip, inverse_solver: SOLVER, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 3}
"""


def burgers(steps: int, solver: str = "step_reversal", also: bool = False) -> str:
    text = BURGERS.replace("STEPS", str(steps)).replace("SOLVER", solver)
    text = text.replace("ALSO", "start: {acts_on: initial.velocity}" if also else "")
    network = "estimator: {type: conv_net, layers: [2], batch_norm: false, input: target, output: start}"
    return text.replace("START", network if also else "")


def test_a_reversed_burgers_step_leads_to_the_target(backend):
    residual = {}
    for iterations in (1, 2, 6):
        case = built(burgers(1), backend)
        zero = {"force.velocity": backend.zeros((3, 1, 64))}
        target = {"trajectory.velocity": case.validation.targets["trajectory.velocity"]}
        found = inverted(case, zero, target, iterations=iterations)
        y = case.problem.observe({key: backend.array(v) for key, v in found.items()}, context_of(case))
        before = case.problem.observe(zero, context_of(case))
        ends = [backend.numpy(case.problem.loss(state, target)) for state in (before, y)]
        residual[iterations] = float(np.max(ends[1] / ends[0]))
    # Each iteration takes away what the interpolation did to the last correction: about a factor 10 in the norm.
    assert residual[1] < 0.05
    assert residual[2] < 0.1 * residual[1]
    assert residual[6] < 0.1 * residual[2]


@pytest.mark.parametrize("also", [False, True])
def test_corrections_of_sixteen_steps_bring_the_trajectory_to_the_fine_one(backend, also):
    case = built(burgers(16, also=also), backend)
    b, problem, batch = backend, case.problem, case.validation
    x = {c.key: b.zeros((3, *c.layout.shape)) for c in problem.controls}
    if also:
        x["initial.velocity"] = 0.9 * batch.references["initial.velocity"]
    target, context = {"trajectory.velocity": batch.targets["trajectory.velocity"]}, context_of(case)
    before = b.numpy(problem.loss(problem.observe(x, context), target))
    found = inverted(case, x, target)
    after = problem.loss(problem.observe({key: b.array(v) for key, v in found.items()}, context), target)
    # Measured at most 0.05; a single call is a local step, not a solve.
    assert np.all(b.numpy(after) < 0.2 * before)


def test_a_sample_whose_characteristics_cross_keeps_its_force(backend):
    case = built(burgers(1), backend)
    steep = np.where(np.arange(64) < 32, 8.0, -8.0)[None] * np.ones((3, 1))
    context = {"initial.velocity": backend.array(steep)}
    case = replace(case, validation=Batch(case.validation.targets, {}, context))
    zero = {"force.velocity": backend.zeros((3, 1, 64))}
    target = {"trajectory.velocity": case.validation.targets["trajectory.velocity"]}
    found = inverted(case, zero, target)
    assert np.array_equal(found["force.velocity"], np.zeros((3, 1, 64)))
