"""Scale-invariant physics (SIP): a local inverse of the physics in place of its gradient.

    Δy = −η (∂²L/∂y²)⁻¹ ∂L/∂y          Newton step of the loss in y
    x̃  = sg( P⁻¹(y + Δy; x, y) )        local inverse, never differentiated
    direction = ∂/∂θ Σ ½ |f(y*; θ) − x̃|²     (proxy: l1 takes Σ |f(y*; θ) − x̃|₁ instead)

Solvers that work on the loss itself (Newton's method in x) are handed y* and their step is scaled by η. In a
closed loop the solver finds the forces of every step, from those that the networks gave on their way; the proxy then
compares f at the states that were met, so that still nothing is differentiated through the physics. With the
gradient as solver the direction is η times that of differentiable physics. Without a network the direction is
x − x̃, and SGD with learning rate 1 takes exactly the step.
Holl, Koltun, Thuerey: Scale-invariant Learning by Physics Inversion, NeurIPS 2022, section 3 and Eq. 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from toolkit.core.backend import Backend
from toolkit.core.options import Options, option
from toolkit.physics.inverse import flatten
from toolkit.training.batch_jacobian import BatchMap
from toolkit.training.distances import absolute_distance, half_squared_distance
from toolkit.training.problem import (
    Batch,
    Natives,
    Problem,
    batch_from_tree,
)
from toolkit.training.rules.base import NetworkRule, Update, UpdateRulePlugin

MET = "met."
"""Prefix of the states met, beside x̃ in what is frozen."""


class ScaleInvariantOptions(Options):
    """Options of SIP."""

    inverse_solver: str | dict[str, Any] = option(
        description="one registered for the PDE, or a generic one: newton, damped_newton, gauss_newton, lbfgs, "
        "gradient, accumulated_gradient; a word or {type: …} with its options"
    )
    step_size: float = option(1.0, gt=0, description="η, step size in y-space")
    inner_updates: int = option(1, ge=1, description="optimizer steps per inverse solve, with x̃ frozen")
    network_rule: str | dict[str, Any] | None = option(
        None,
        description="update rule that minimises the distance to x̃ in θ, such as hig or {type: hig, truncation: 1e-6}; "
        "left out: its gradient",
    )
    proxy: Literal["l2", "l1"] = option("l2", description="distance to x̃: l2 is ½Σ(x − x̃)², l1 is Σ|x − x̃|")


@dataclass(frozen=True)
class ScaleInvariantPhysics:
    """The rule; the network is evaluated once per update and that x serves both x̃ and the proxy loss."""

    step_size: float = 1.0
    inner_updates: int = 1
    proxy: str = "l2"
    network_rule: NetworkRule | None = None
    """What turns the gradient of the proxy in x into a direction in θ; None: backpropagation."""

    def __call__(self, problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Update:
        b = problem.backend

        def objective(params: Natives) -> tuple[Any, Any]:
            x, after = problem.predict(params, buffers, batch, training=True)
            arguments = (params, buffers, x, batch.tree())
            frozen, loss = b.without_gradient(lambda *args: self._correct(problem, *args), *arguments)
            x = _with_replayed(problem, params, buffers, batch, x, frozen)
            return b.xp.sum(self._distance(b, x, frozen)), (x, after, frozen, loss)

        if self.network_rule is not None:
            _, (x, after, frozen, loss) = b.without_gradient(objective, params)
            direction, report = self._by_network_rule(problem, params, buffers, batch, x, frozen)
            return Update(direction, b.xp.sum(loss), buffers=after, controls=x, frozen=frozen, metrics=report)
        _, (x, after, frozen, loss), direction = b.value_and_gradient(objective, params)
        return Update(direction, b.xp.sum(loss), buffers=after, controls=x, frozen=frozen)

    def repeat(self, problem: Problem, params: Natives, buffers: Natives, batch: Batch, frozen: Natives) -> Update:
        """One more direction towards the same x̃, at new parameters."""
        b = problem.backend

        def objective(params: Natives) -> tuple[Any, Any]:
            x, after = problem.predict(params, buffers, batch, training=True)
            x = _with_replayed(problem, params, buffers, batch, x, frozen)
            return b.xp.sum(self._distance(b, x, frozen)), (x, after)

        if self.network_rule is not None:
            value, (x, after) = b.without_gradient(objective, params)
            direction, report = self._by_network_rule(problem, params, buffers, batch, x, frozen)
            return Update(direction, value, buffers=after, controls=x, frozen=frozen, metrics=report)
        value, (x, after), direction = b.value_and_gradient(objective, params)
        return Update(direction, value, buffers=after, controls=x, frozen=frozen)

    def _by_network_rule(
        self, problem: Problem, params: Natives, buffers: Natives, batch: Batch, x: Natives, frozen: Natives
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The direction for the proxy loss, an ordinary loss whose physics is the identity."""
        assert self.network_rule is not None
        b, layouts = problem.backend, {key: problem.control_layouts[key] for key in x}

        def controls(problem: Problem, params: Natives) -> Any:
            given, _ = problem.predict(params, buffers, batch, training=True)
            return flatten(_with_replayed(problem, params, buffers, batch, given, frozen), layouts, b)

        difference = flatten({key: x[key] - frozen[key] for key in x}, layouts, b)
        gradient = b.xp.sign(difference) if self.proxy == "l1" else difference
        return self.network_rule.direction(BatchMap(problem, controls), params, gradient, problem.network_inputs(batch))

    def _distance(self, backend: Backend, x: Natives, frozen: Natives) -> Any:
        distance = absolute_distance if self.proxy == "l1" else half_squared_distance
        return distance(backend, x, frozen)

    def _correct(
        self, problem: Problem, params: Natives, buffers: Natives, x: Natives, tree: Any
    ) -> tuple[dict[str, Any], Any]:
        """(x̃ and, for networks in the loop, the states in which they acted; loss per sample)."""
        assert problem.solver is not None
        batch = batch_from_tree(tree)
        policy = problem.policy(params, buffers, batch.targets)
        trajectory = problem.simulate(x, batch.context, policy, record=problem.records or policy is not None)
        met = problem.states_met(trajectory, x, batch.context) if policy is not None else {}
        x = {**x, **{c.key: trajectory.forces[c.target] for use in problem.loop for c in use.controls}}
        y = problem.read(trajectory, x)
        loss = problem.loss(y, batch.targets)
        return {**self._solve(problem, x, y, batch), **{MET + name: state for name, state in met.items()}}, loss

    def _solve(self, problem: Problem, x: Natives, y: Natives, batch: Batch) -> dict[str, Any]:
        assert problem.solver is not None
        if problem.solver[0].works_on == "observation":
            return problem.invert(x, y, problem.newton_target(y, batch.targets, self.step_size), batch.context)
        targets = {key: batch.targets.get(key, value) for key, value in y.items()}
        found = problem.invert(x, y, targets, batch.context)
        return {key: x[key] + self.step_size * (found[key] - x[key]) for key in x}


def _with_replayed(
    problem: Problem, params: Natives, buffers: Natives, batch: Batch, x: Natives, frozen: Natives
) -> dict[str, Any]:
    """x with the forces of networks in the loop, evaluated again in the states they met."""
    met = {key.removeprefix(MET): value for key, value in frozen.items() if key.startswith(MET)}
    return {**x, **problem.replay(params, buffers, batch.targets, met)}


def _build(options: BaseModel) -> ScaleInvariantPhysics:
    assert isinstance(options, ScaleInvariantOptions)
    return ScaleInvariantPhysics(options.step_size, options.inner_updates, options.proxy)


RULE = UpdateRulePlugin(
    name="sip",
    summary="scale-invariant physics: a Newton step in y and an inverse solver instead of the gradient of P",
    options=ScaleInvariantOptions,
    build=_build,
    needs=frozenset({"inverse_solver"}),
    potential=False,
    inner_updates=lambda options: options.inner_updates,
    references=("Holl et al. 2022, section 3",),
    formula="Δy = −η (∂²L/∂y²)⁻¹ ∂L/∂y\nx̃ = P⁻¹(y + Δy; x, y), not differentiated\n"
    "direction = ∂/∂θ Σ ½ |f(y*; θ) − x̃|²",
)
