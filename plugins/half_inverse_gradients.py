"""Half-inverse gradients and Gauss–Newton: the Jacobian of a mini-batch through network and physics, partly inverted.

    direction = V diag(s^κ [s > τ s_max]) Uᵀ ∂L/∂y,   J = ∂y/∂θ = U diag(s) Vᵀ,   κ = −1/2 (hig), −1 (gauss_newton)
              = V diag(s / (s² + λ s_max²)) Uᵀ ∂L/∂y = Jᵀ (J Jᵀ + λ s_max²)⁻¹ ∂L/∂y       (levenberg_marquardt)

Plain gradients progress along a singular direction at the rate s², Gauss–Newton at the same rate along all of them,
which small s do not survive; κ = −1/2 is half way. For any PDE, network and loss; also for controls without a network,
and for the proxy loss of `sip` (`network_rule: hig`). Schnell, Holl, Thuerey: Half-Inverse Gradients for Physical Deep
Learning, ICLR 2022.

Levenberg–Marquardt damps what the others cut off. λ stays what it is: rules keep nothing between updates, and a trial
of several λ would need the loss at parameters that only the optimizer knows. Being relative to s_max², it follows the
scale of J.
"""

from __future__ import annotations

from typing import Literal

from toolkit import HalfInverseRule, HalfInversion, Options, UpdateRulePlugin, option

GIB = 2**30
FORMULA = "J = ∂y/∂θ = U diag(s) Vᵀ\ndirection = V diag(s^κ [s > τ s_max]) Uᵀ ∂L/∂y"


class HalfInverseOptions(Options):
    """Options of half-inverse gradients."""

    exponent: float = option(-0.5, description="κ: −1/2 half-inverse, −1 Gauss–Newton, 0 orthogonalised, +1 gradient")
    truncation: float = option(
        1e-6, ge=0, description="τ: singular values up to τ · largest (relative) or τ (absolute) contribute nothing"
    )
    truncation_mode: Literal["relative", "absolute"] = option("relative", description="what τ refers to")
    algorithm: Literal["auto", "factored", "adaptive", "tridiagonal", "gram", "lanczos", "svd64", "svd"] = option(
        "auto",
        description="factored: J Jᵀ from the factors of dense layers; tridiagonal, gram, adaptive: by eigenvalues of "
        "J Jᵀ; svd64, svd: of J itself; lanczos: from products with J alone, approximate; auto: what is exact and fast",
    )
    krylov_steps: int | None = option(None, ge=1, description="most steps of lanczos; left out: a fifth of the rows")
    memory: float = option(4.0, gt=0, units="GiB", description="largest Jacobian that is formed, largest J Jᵀ too")


class GaussNewtonRuleOptions(HalfInverseOptions):
    """Options of Gauss–Newton."""

    exponent: float = option(-1.0, description="κ: −1 inverts the singular values that are kept")


class LevenbergMarquardtOptions(Options):
    """Options of Levenberg–Marquardt."""

    damping: float = option(
        1e-6, ge=1e-10, description="λ: singular values far below √λ · largest are damped; the same at every update"
    )
    algorithm: Literal["auto", "factored", "cholesky", "gram", "lanczos", "svd64"] = option(
        "auto",
        description="factored: J Jᵀ from the factors of dense layers; cholesky: a factor of J Jᵀ + λ s_max²; "
        "gram: eigenvalues of J Jᵀ; svd64: of J itself; lanczos: products with J alone, approximate; auto: the fastest "
        "of the exact ones",
    )
    krylov_steps: int | None = option(None, ge=1, description="most steps of lanczos; left out: a fifth of the rows")
    memory: float = option(4.0, gt=0, units="GiB", description="largest Jacobian that is formed, largest J Jᵀ too")


def _damped(options: LevenbergMarquardtOptions) -> HalfInverseRule:
    factored = options.algorithm == "factored"
    algorithm = "auto" if options.algorithm == "factored" else options.algorithm
    inversion = HalfInversion(-1.0, 0.0, "relative", algorithm, options.krylov_steps, damping=options.damping)
    return HalfInverseRule(inversion, factored, int(options.memory * GIB))


def _build(options: HalfInverseOptions) -> HalfInverseRule:
    factored = options.algorithm == "factored"
    algorithm = "auto" if options.algorithm == "factored" else options.algorithm
    inversion = HalfInversion(
        options.exponent, options.truncation, options.truncation_mode, algorithm, options.krylov_steps
    )
    return HalfInverseRule(inversion, factored, int(options.memory * GIB))


HIG = UpdateRulePlugin(
    name="hig",
    summary="half-inverse gradients: the Jacobian of the mini-batch, half-inverted by a truncated decomposition",
    options=HalfInverseOptions,
    build=_build,
    needs=frozenset({"independent_samples"}),
    potential=False,
    network_rule=True,
    references=("Schnell, Holl, Thuerey 2022, Eq. 5",),
    formula=FORMULA,
)
GAUSS_NEWTON = UpdateRulePlugin(
    name="gauss_newton",
    summary="Gauss–Newton: the Jacobian of the mini-batch through network and physics, inverted where it is large",
    options=GaussNewtonRuleOptions,
    build=_build,
    needs=frozenset({"independent_samples"}),
    potential=False,
    network_rule=True,
    references=("Schnell, Holl, Thuerey 2022, section 2",),
    formula=FORMULA,
)
LEVENBERG_MARQUARDT = UpdateRulePlugin(
    name="levenberg_marquardt",
    summary="Levenberg–Marquardt: Gauss–Newton with its singular values damped instead of cut off",
    options=LevenbergMarquardtOptions,
    build=_damped,
    needs=frozenset({"independent_samples"}),
    potential=False,
    network_rule=True,
    references=("Marquardt: An algorithm for least-squares estimation of nonlinear parameters, SIAM J. 11, 1963",),
    formula="J = ∂y/∂θ = U diag(s) Vᵀ\ndirection = V diag(s / (s² + λ s_max²)) Uᵀ ∂L/∂y",
)
