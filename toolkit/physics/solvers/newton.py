"""Newton steps on the loss itself, per sample, for any PDE (Holl et al. 2022; appendix on Newton's method).

With g = ∂L/∂x, H = ∂²L/∂x² = V diag(λ) Vᵀ and g' = Vᵀg:

    saddle-free:  Δx = V s,   s_i = −sign(g'_i) min(|g'_i / λ_i|, ℓ_i)
    damped:       Δx = V s,   s_i = −sign(g'_i) min(|g'_i / (λ_i + μ)|, ℓ_i)

The step limit δ (`max_loss_change`, in units of the loss) bounds the first-order decrease along an eigenvector:
ℓ_i = |δ / g'_i|; the saddle-free rule limits only flat and negatively curved directions, λ_i ≤ |Π λ|^(1/n).

Directions that the loss does not feel (forces of many steps, judged at the end) have λ_i = 0 but for rounding. What is
below n ε max|λ| counts as 0 and stays as it is: g'_i/λ_i would be a quotient of rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.core.errors import ScenarioError
from toolkit.core.options import Options, option
from toolkit.physics.inverse import flat_loss, from_flat, natives, size, to_flat
from toolkit.physics.plugin import InverseProblem, InverseSolver, InverseSolverPlugin, State

MAX_UNKNOWNS = 4096
"""Largest n for which an n × n Hessian per sample is formed (128 MiB each in float64)."""


class NewtonOptions(Options):
    """Options of the saddle-free Newton step."""

    max_loss_change: float | None = option(
        None,
        gt=0,
        units="loss",
        description="δ: limit of the first-order loss change along flat or negative curvature",
    )


class DampedNewtonOptions(Options):
    """Options of the damped Newton step."""

    damping: float = option(0.1, ge=0, units="curvature", description="μ, added to the Hessian's diagonal")
    max_loss_change: float | None = option(
        None,
        gt=0,
        units="loss",
        description="δ: limit of the first-order loss change along every eigenvector",
    )


def _divide(xp: Any, a: Any, b: Any) -> Any:
    """|a / b|, and 0 where b is 0."""
    zero = b == 0
    return xp.abs(xp.where(zero, xp.zeros_like(a), a / xp.where(zero, xp.ones_like(b), b)))


def _felt(xp: Any, curvatures: Any) -> Any:
    """Curvatures (B, n) with those that are rounding errors of the largest replaced by 0."""
    magnitude = xp.abs(curvatures)
    accuracy = curvatures.shape[-1] * np.finfo(str(curvatures.dtype).rpartition(".")[-1]).eps
    return xp.where(magnitude > accuracy * xp.max(magnitude, axis=-1)[..., None], curvatures, xp.zeros_like(curvatures))


def saddle_free_step(xp: Any, gradient: Any, hessian: Any, max_loss_change: float | None = None) -> Any:
    """Δx (B, n) from g (B, n) and H (B, n, n): length |H|⁻¹g along each eigenvector, always downhill."""
    eigenvalues, vectors = xp.eigh(hessian)
    eigenvalues = _felt(xp, eigenvalues)
    g = xp.einsum("bij,bi->bj", vectors, gradient)
    length = _divide(xp, g, eigenvalues)
    if max_loss_change is not None:
        # exp(mean log): the product of many eigenvalues would over- or underflow.
        magnitude = xp.abs(eigenvalues)
        positive = xp.where(magnitude == 0, xp.ones_like(magnitude), magnitude)
        mean = xp.exp(xp.mean(xp.log(positive), axis=-1))[..., None]
        singular = xp.sum((magnitude == 0) * xp.ones_like(magnitude), axis=-1)[..., None] > 0
        mean = xp.where(singular, xp.zeros_like(mean), mean)
        limit = _divide(xp, max_loss_change * xp.ones_like(g), g)
        length = xp.where(eigenvalues > mean, length, xp.minimum(length, limit))
    return xp.einsum("bij,bj->bi", vectors, -xp.sign(g) * length)


def damped_step(xp: Any, gradient: Any, hessian: Any, damping: float, max_loss_change: float | None = None) -> Any:
    """Δx (B, n): length (H + μI)⁻¹g along each eigenvector, always downhill."""
    eigenvalues, vectors = xp.eigh(hessian)
    g = xp.einsum("bij,bi->bj", vectors, gradient)
    length = _divide(xp, g, _felt(xp, eigenvalues + damping))
    if max_loss_change is not None:
        length = xp.minimum(length, _divide(xp, max_loss_change * xp.ones_like(g), g))
    return xp.einsum("bij,bj->bi", vectors, -xp.sign(g) * length)


def _solver(problem: InverseProblem, step: Callable[[Any, Any], Any]) -> InverseSolver:
    n = size(problem.controls)
    if n > MAX_UNKNOWNS:
        raise ScenarioError(
            f"update.inverse_solver: a Newton step needs a Hessian of {n} x {n} per sample; with more than "
            f"{MAX_UNKNOWNS} unknowns use gauss_newton or lbfgs, or lower grid.cells"
        )

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Any]:
        x = to_flat(problem, x0)
        targets = natives(y_target, problem.observations)
        gradient, hessian = problem.backend.gradient_and_hessian(flat_loss(problem), x, targets, problem.context)
        return from_flat(problem, x + step(gradient, hessian))

    return solve


def _newton(problem: InverseProblem, options: NewtonOptions) -> InverseSolver:
    xp = problem.backend.xp
    return _solver(problem, lambda g, h: saddle_free_step(xp, g, h, options.max_loss_change))


def _damped_newton(problem: InverseProblem, options: DampedNewtonOptions) -> InverseSolver:
    xp = problem.backend.xp
    return _solver(problem, lambda g, h: damped_step(xp, g, h, options.damping, options.max_loss_change))


NEWTON = InverseSolverPlugin(
    name="newton",
    summary="saddle-free Newton step on the loss, with an optional step limit",
    build=_newton,
    options=NewtonOptions,
    works_on="loss",
    references=("Holl et al. 2022, appendix; Dauphin et al. 2014",),
)
DAMPED_NEWTON = InverseSolverPlugin(
    name="damped_newton",
    summary="Newton step on the loss with a damped Hessian",
    build=_damped_newton,
    options=DampedNewtonOptions,
    works_on="loss",
)
