"""Directions of supervised, DP and SIP: identities between the rules, finite differences, and what never happens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
import torch
from numeric_cases import built, heat, relative, tree_relative, updated

from plugins.heat import Heat
from toolkit.physics.layout import Layout
from toolkit.physics.plugin import InverseSolverPlugin
from toolkit.training.distances import half_squared_distance

GAUSS_NEWTON = "{type: gauss_newton, damping: 0.0, tolerance: 1e-14, max_iterations: 40}"


def sip(solver: str = GAUSS_NEWTON, more: str = "") -> str:
    return f"sip, inverse_solver: {solver}{more}"


def objective(case, params, frozen=None):
    """Σ L(P(f(y*)), y*), or with x̃ given Σ ½|f(y*) − x̃|², as a number."""
    problem, batch = case.problem, case.validation
    x, _ = problem.predict(params, case.buffers, batch, training=True)
    if frozen is not None:
        frozen = {key: problem.backend.array(value, "physics") for key, value in frozen.items()}
        return float(problem.backend.xp.sum(half_squared_distance(problem.backend, x, frozen)))
    return float(problem.backend.xp.sum(problem.loss(problem.observe(x, batch.context), batch.targets)))


def central_difference(case, direction, frozen=None, h=1e-6):
    """Derivative of the objective along a fixed random direction: (numeric, from the rule's direction)."""
    rng, b = np.random.default_rng(0), case.problem.backend
    d = {name: rng.standard_normal(value.shape) for name, value in direction.items()}
    ends = []
    for sign in (1, -1):
        moved = {name: value + b.array(sign * h * d[name]) for name, value in case.params.items()}
        ends.append(objective(case, moved, frozen))
    return (ends[0] - ends[1]) / (2 * h), sum(float(np.sum(d[name] * direction[name])) for name in direction)


def test_dp_is_the_gradient_of_the_loss_through_network_and_physics(backend):
    case = built(heat(update="dp"), backend)
    update = updated(case)
    numeric, exact = central_difference(case, update["direction"])
    # Central differences: h² plus rounding of the loss over h, both near 1e-10.
    assert numeric == pytest.approx(exact, rel=1e-7)
    assert update["loss"][""] == pytest.approx(objective(case, case.params), rel=1e-13)


def test_supervised_is_the_gradient_of_the_distance_to_the_true_control(backend):
    case = built(heat(update="supervised"), backend)
    references = {key: backend.numpy(value) for key, value in case.validation.references.items()}
    update = updated(case)
    numeric, exact = central_difference(case, update["direction"], references)
    assert numeric == pytest.approx(exact, rel=1e-7)
    # The loss that it reports is that of the physics, as for every rule.
    assert update["loss"][""] == pytest.approx(objective(case, case.params), rel=1e-13)


def test_sip_is_the_gradient_of_the_proxy_with_the_corrected_control_frozen(backend):
    case = built(heat(update=sip()), backend)
    update = updated(case)
    numeric, exact = central_difference(case, update["direction"], update["frozen"])
    assert numeric == pytest.approx(exact, rel=1e-7)
    assert update["loss"][""] == pytest.approx(objective(case, case.params), rel=1e-13)


def test_proxy_gradient_in_x_is_minus_the_step_bit_by_bit(backend):
    """Without a network θ is x: the direction is ∂L_x/∂x = −Δx = x − x̃, and x̃ the known inverse."""
    text = """
name: toy
pde: parabola
controls: {x: {acts_on: initial.x, initial: [3.0, 3.0]}}
loss: {type: squared_norm, on: final.y}
update: {type: sip, inverse_solver: analytic, step_size: 0.3, optimizer: {type: sgd, learning_rate: 1.0}}
"""
    update = updated(built(text, backend))
    x, x_tilde = update["controls"]["initial.x"], update["frozen"]["initial.x"]
    assert np.array_equal(update["direction"]["control/x"], x - x_tilde)
    # y − ηy at η = 0.3 is (2.1, 6.3).
    assert np.allclose(x_tilde, [[2.1, np.sqrt(6.3)]], rtol=1e-15)


def test_dp_without_network_is_the_gradient_in_x(backend):
    text = """
name: toy
pde: parabola
controls: {x: {acts_on: initial.x, initial: [3.0, 3.0]}}
loss: {type: squared_norm, on: final.y}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.01}}
"""
    # ∂(x0² + x1⁴)/∂x at (3, 3).
    assert np.allclose(updated(built(text, backend))["direction"]["control/x"], [[6, 108]], rtol=1e-15)


@pytest.mark.parametrize("step_size", [1.0, 0.37])
def test_sip_with_the_gradient_as_solver_is_dp_times_the_step_size(backend, step_size):
    dp = updated(built(heat(update="dp"), backend))
    with_gradient = updated(built(heat(update=sip("gradient", f", step_size: {step_size}")), backend))
    scaled = {name: step_size * value for name, value in dp["direction"].items()}
    assert tree_relative(with_gradient["direction"], scaled) < 1e-12


def test_sip_with_an_exact_inverse_is_supervised_training(backend):
    """P is linear and invertible, so one Gauss–Newton step from any x ends at x*."""
    supervised = updated(built(heat(update="supervised"), backend))
    case = built(heat(update=sip()), backend)
    update = updated(case)
    truth = backend.numpy(case.validation.references["initial.temperature"])
    assert relative(update["frozen"]["initial.temperature"], truth) < 1e-9  # conjugate gradients stop at 1e-14
    assert tree_relative(update["direction"], supervised["direction"]) < 1e-9


@pytest.mark.parametrize("solver", ["gradient", GAUSS_NEWTON])
def test_half_the_step_size_at_twice_the_learning_rate_moves_the_parameters_the_same(backend, solver):
    def moved(step_size: float, rate: float) -> dict[str, np.ndarray]:
        optimizer = f", step_size: {step_size}, optimizer: {{type: sgd, learning_rate: {rate}}}"
        case = built(heat(update=sip(solver, optimizer)), backend)
        state, _ = case.trainer.step(case.trainer.start(case.params, case.buffers), case.validation)
        return {name: backend.numpy(state.params[name] - case.params[name]) for name in case.params}

    assert tree_relative(moved(0.5, 0.2), moved(1.0, 0.1)) < 1e-12  # only rounding is left


@pytest.mark.parametrize("n", [1, 3])
def test_inner_updates_are_optimizer_steps_on_one_frozen_proxy(backend, n):
    adam = "optimizer: {type: adam, learning_rate: 0.01}"
    case = built(heat(update=sip("gradient", f", inner_updates: {n}, {adam}")), backend)
    state, _ = case.trainer.step(case.trainer.start(case.params, case.buffers), case.validation)
    frozen = {k: backend.array(v) for k, v in updated(case)["frozen"].items()}
    optimizer = backend.optimizer("adam", {}, 0.01)
    params, memory = dict(case.params), optimizer.init(dict(case.params))

    def proxy(params: Any) -> tuple[Any, Any]:
        x, _ = case.problem.predict(params, case.buffers, case.validation, training=True)
        return backend.xp.sum(half_squared_distance(backend, x, frozen)), ()

    for _ in range(n):
        _, _, gradient = backend.value_and_gradient(proxy, params)
        params, memory = optimizer.update(gradient, memory, params)
    expected = {name: backend.numpy(value) for name, value in params.items()}
    assert tree_relative({name: backend.numpy(v) for name, v in state.params.items()}, expected) < 1e-12


FIELD = Layout(cells={"x": 8})
"""Of the temperature of `heat()`."""


class NumpyHeat(Heat):
    """A step that leaves the array library: nothing can be differentiated through it."""

    def step(self, state, inputs, t, dt):
        native = FIELD.native(state["temperature"], state["temperature"].shape.get_size("sample"))
        # |k|² of the 8 cells of `heat()`.
        kernel = np.exp(-self.diffusivity * dt * (2 * np.pi * np.fft.fftfreq(8)) ** 2)
        return {"temperature": FIELD.wrap(outside(native, lambda a: np.fft.ifft(kernel * np.fft.fft(a)).real))}


def outside(native: Any, function: Any) -> Any:
    """function(native) in NumPy; raises where a gradient would have to pass."""
    if isinstance(native, torch.Tensor):
        return torch.from_numpy(function(native.numpy()))
    return jax.pure_callback(
        lambda a: function(np.asarray(a)), jax.ShapeDtypeStruct(native.shape, native.dtype), native
    )


def numpy_inverse(problem, options):
    """x̂ = x0 + y* − y0, computed outside of the array library."""

    def solve(x0, y0, y_target):
        difference = FIELD.native(y_target["final.temperature"] - y0["final.temperature"], 3)
        moved = FIELD.wrap(outside(difference, lambda a: a.copy()))
        return {"initial.temperature": x0["initial.temperature"] + moved}

    return solve


def test_sip_never_differentiates_the_physics_or_its_inverse(backend):
    case = built(heat(update=sip("gradient")), backend)
    pde = case.problem.rollout.pde
    assert isinstance(pde, Heat)
    outside_pde = NumpyHeat(pde.grid, pde.diffusivity, pde.squared_wavenumber)
    solver = InverseSolverPlugin("outside", "plain residual", numpy_inverse)
    problem = replace(
        case.problem,
        rollout=replace(case.problem.rollout, pde=outside_pde, _traced={}),
        solver=(solver, solver.options()),
    )
    trainer = replace(case.trainer, problem=problem, _compiled={})
    state, metrics = trainer.step(trainer.start(case.params, case.buffers), case.validation)
    assert np.isfinite(metrics["train_loss"])
    assert any(np.any(backend.numpy(state.params[k] - case.params[k])) for k in case.params)
    # The same physics under DP must fail: it really cannot be differentiated.
    dp = replace(built(heat(update="dp"), backend).trainer, problem=problem, _compiled={})
    with pytest.raises((RuntimeError, ValueError), match=r"grad|JVP|differentiat"):
        dp.step(dp.start(case.params, case.buffers), case.validation)


def test_the_mean_of_the_prediction_is_that_of_the_target(backend):
    """Diffusion conserves the mean, so the network's own mean must not matter."""
    case = built(heat(update="dp"), backend)
    x = updated(case)["controls"]["initial.temperature"]
    target = backend.numpy(case.validation.targets["final.temperature"])
    assert np.allclose(x.mean(axis=1), target.mean(axis=1), atol=1e-15)
    direction = updated(case)["direction"]["f/out.bias"]
    # A shift of all output cells moves nothing: the bias' gradient sums to zero.
    assert abs(direction.sum()) < 1e-14 * np.abs(direction).sum() + 1e-15
