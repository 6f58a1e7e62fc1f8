"""Gauss–Newton as a local inverse of any PDE: the damped least-squares preimage of a step in y.

    x̂ = x₀ + argmin |J Δx − (y_target − y₀)|² + μ |Δx|²,   J = ∂P/∂x at x₀

solved per sample by conjugate gradients on JᵀJ + μI without forming J. For a square regular J and μ = 0 it is
J⁻¹Δy, the crudest admissible local inverse (Thuerey et al., Physics-based Deep Learning, chapter on half-inverse
gradients).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.core.options import Options, option
from toolkit.physics.inverse import flat_observe, flatten, from_flat, natives, to_flat
from toolkit.physics.plugin import InverseProblem, InverseSolver, InverseSolverPlugin, State


class GaussNewtonOptions(Options):
    """Options of the Gauss–Newton step."""

    damping: float = option(1e-6, ge=0, units="(y / x)²", description="μ, added to JᵀJ")
    max_iterations: int = option(100, ge=1, description="conjugate-gradient iterations per step")
    tolerance: float = option(1e-8, gt=0, description="residual of the normal equations relative to its start")


def conjugate_gradients(
    backend: Any, operator: Callable[[Any], Any], b: Any, max_iterations: int, tolerance: float
) -> Any:
    """x (B, n) with operator(x) = b per sample, from zero; converged samples stand still."""
    xp = backend.xp
    norm0 = xp.sum(b * b, axis=1)
    goal = norm0 * tolerance**2

    def active(carry: Any) -> Any:
        _, _, _, norm, i = carry
        return xp.logical_and(xp.any(norm > goal), i < max_iterations)

    def iterate(carry: Any) -> Any:
        x, r, p, norm, i = carry
        running = norm > goal
        ap = operator(p)
        curvature = xp.sum(p * ap, axis=1)
        # A sample is done when it has converged or its curvature is exhausted by rounding.
        running = xp.logical_and(running, curvature > 0)
        alpha = xp.where(running, norm / xp.where(running, curvature, xp.ones_like(curvature)), xp.zeros_like(norm))
        x, r = x + alpha[:, None] * p, r - alpha[:, None] * ap
        new = xp.where(running, xp.sum(r * r, axis=1), xp.zeros_like(norm))
        beta = xp.where(running, new / xp.where(running, norm, xp.ones_like(norm)), xp.zeros_like(norm))
        return x, r, r + beta[:, None] * p, new, i + 1

    start = (xp.zeros_like(b), b, b, norm0, xp.sum(xp.zeros_like(norm0)))
    return backend.while_loop(active, iterate, start)[0]


def _build(problem: InverseProblem, options: GaussNewtonOptions) -> InverseSolver:
    b = problem.backend

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        x = to_flat(problem, x0)
        y, push, pull = b.linearize(flat_observe(problem), x)
        goal = flatten(natives(y_target, problem.observations), problem.observations, b)

        def normal(v: Any) -> Any:
            return pull(push(v)) + options.damping * v

        step = conjugate_gradients(b, normal, pull(goal - y), options.max_iterations, options.tolerance)
        return from_flat(problem, x + step)

    return solve


GAUSS_NEWTON = InverseSolverPlugin(
    name="gauss_newton",
    summary="damped least-squares local inverse of any PDE, matrix-free",
    build=_build,
    options=GaussNewtonOptions,
    references=("Thuerey et al., Physics-based Deep Learning",),
)
