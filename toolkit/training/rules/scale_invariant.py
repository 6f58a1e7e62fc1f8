"""Scale-invariant physics (SIP): a local inverse of the physics in place of its gradient.

    Δy = −η (∂²L/∂y²)⁻¹ ∂L/∂y          Newton step of the loss in y
    x̃  = sg( P⁻¹(y + Δy; x, y) )        local inverse, never differentiated
    direction = ∂/∂θ Σ ½ |f(y*; θ) − x̃|²     (proxy: l1 takes Σ |f(y*; θ) − x̃|₁ instead)

Solvers that work on the loss itself (Newton's method in x) are handed y* and their step is scaled by η. With the
gradient as solver the direction is η times that of differentiable physics. Without a network the direction is
x − x̃, and SGD with learning rate 1 takes exactly the step.
Holl, Koltun, Thuerey: Scale-invariant Learning by Physics Inversion, NeurIPS 2022, section 3 and Eq. 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from toolkit.core.backend import Backend
from toolkit.core.options import Options, option
from toolkit.training.problem import Batch, Natives, Problem, absolute_distance, half_squared_distance
from toolkit.training.rules.base import Update, UpdateRulePlugin


class ScaleInvariantOptions(Options):
    """Options of SIP."""

    inverse_solver: str | dict[str, Any] = option(
        description="one registered for the PDE, or a generic one: newton, damped_newton, gauss_newton, lbfgs, "
        "gradient, accumulated_gradient; a word or {type: …} with its options"
    )
    step_size: float = option(1.0, gt=0, description="η, step size in y-space")
    inner_updates: int = option(1, ge=1, description="optimizer steps per inverse solve, with x̃ frozen")
    proxy: Literal["l2", "l1"] = option("l2", description="distance to x̃: l2 is ½Σ(x − x̃)², l1 is Σ|x − x̃|")


@dataclass(frozen=True)
class ScaleInvariantPhysics:
    """The rule; the network is evaluated once per update and that x serves both x̃ and the proxy loss."""

    step_size: float = 1.0
    inner_updates: int = 1
    proxy: str = "l2"

    def __call__(self, problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Update:
        b = problem.backend

        def objective(params: Natives) -> tuple[Any, Any]:
            x, after = problem.predict(params, buffers, batch, training=True)
            x_tilde, loss = b.without_gradient(lambda x: self._correct(problem, x, batch), x)
            return b.xp.sum(self._distance(b, x, x_tilde)), (x, after, x_tilde, loss)

        _, (x, after, x_tilde, loss), direction = b.value_and_gradient(objective, params)
        return Update(direction, b.xp.sum(loss), buffers=after, controls=x, frozen=x_tilde)

    def repeat(self, problem: Problem, params: Natives, buffers: Natives, batch: Batch, frozen: Natives) -> Update:
        """One more direction towards the same x̃, at new parameters."""
        b = problem.backend

        def objective(params: Natives) -> tuple[Any, Any]:
            x, after = problem.predict(params, buffers, batch, training=True)
            return b.xp.sum(self._distance(b, x, frozen)), (x, after)

        value, (x, after), direction = b.value_and_gradient(objective, params)
        return Update(direction, value, buffers=after, controls=x, frozen=frozen)

    def _distance(self, backend: Backend, x: Natives, x_tilde: Natives) -> Any:
        distance = absolute_distance if self.proxy == "l1" else half_squared_distance
        return distance(backend, x, x_tilde)

    def _correct(self, problem: Problem, x: Natives, batch: Batch) -> tuple[dict[str, Any], Any]:
        """(x̃, loss per sample)."""
        assert problem.solver is not None
        y = problem.observe(x, batch.context)
        loss = problem.loss(y, batch.targets)
        if problem.solver[0].works_on == "observation":
            return problem.invert(x, y, problem.newton_target(y, batch.targets, self.step_size), batch.context), loss
        targets = {key: batch.targets.get(key, value) for key, value in y.items()}
        found = problem.invert(x, y, targets, batch.context)
        return {key: x[key] + self.step_size * (found[key] - x[key]) for key in x}, loss


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
)
