"""The gradient as an inverse solver: the baseline that turns SIP back into differentiable physics.

    gradient:              x̂ = x − ∂L/∂x         (SIP with it gives η times the gradient of DP)
    accumulated_gradient:  K steps x ← x − κ ∂L/∂x, then D = x^K − x^0 rescaled to the length of ∂L/∂x at x^0

Holl et al. 2022, section 4 (the fluid experiment's baseline). Rescaling makes the accumulated step a direction only.
"""

from __future__ import annotations

from typing import Any

from toolkit.core.options import Options, option
from toolkit.physics.inverse import flat_value_and_gradient, from_flat, natives, to_flat
from toolkit.physics.plugin import InverseProblem, InverseSolver, InverseSolverPlugin, NoOptions, State


class AccumulatedGradientOptions(Options):
    """Options of the accumulated gradient."""

    iterations: int = option(8, ge=1, description="K, gradient steps per call")
    step: float = option(4e-2, gt=0, units="control² / loss", description="κ, size of each gradient step")


def _gradient(problem: InverseProblem, options: NoOptions) -> InverseSolver:
    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        x = to_flat(problem, x0)
        evaluate = flat_value_and_gradient(problem, natives(y_target, problem.observations))
        return from_flat(problem, x - evaluate(x)[1])

    return solve


def _accumulated(problem: InverseProblem, options: AccumulatedGradientOptions) -> InverseSolver:
    xp = problem.backend.xp

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        start = to_flat(problem, x0)
        evaluate = flat_value_and_gradient(problem, natives(y_target, problem.observations))
        first = evaluate(start)[1]
        x = start - options.step * first
        for _ in range(options.iterations - 1):
            x = x - options.step * evaluate(x)[1]
        travelled = x - start
        length = xp.sqrt(xp.sum(travelled**2, axis=1))[:, None]
        wanted = xp.sqrt(xp.sum(first**2, axis=1))[:, None]
        scale = wanted / xp.where(length == 0, xp.ones_like(length), length)
        return from_flat(problem, start + scale * travelled)

    return solve


GRADIENT = InverseSolverPlugin(
    name="gradient",
    summary="one plain gradient step; SIP with it equals differentiable physics",
    build=_gradient,
    works_on="loss",
)
ACCUMULATED_GRADIENT = InverseSolverPlugin(
    name="accumulated_gradient",
    summary="direction of several gradient steps at the length of one gradient",
    build=_accumulated,
    options=AccumulatedGradientOptions,
    works_on="loss",
)
