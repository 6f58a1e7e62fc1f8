"""What a half-inversion is asked for, how its algorithm is chosen, and what it reports.

A Gram matrix K = J Jᵀ in float64 has errors of some eps s_max² in its eigenvalues s². The update is then wrong by 1e-5
where the smallest kept s is 1e-6 s_max, by 2e-2 where it is 1e-7 s_max; an SVD in float64 goes on to 1e-15 s_max. So
methods on K drop what is below `RESOLVED` and say so (`Report.resolved`), and `choose` gives them only work that they
can do. K in float32 resolves 3e-4 s_max: it is refused below a relative truncation of 1e-2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

Algorithm = Literal["auto", "adaptive", "tridiagonal", "gram", "cholesky", "lanczos", "svd64", "svd"]
"""auto         what `choose` says
adaptive     tridiagonal; where K does not resolve the kept part of the spectrum, svd64
tridiagonal  float64 K, Householder tridiagonalisation, its eigenvectors alone; the fastest exact one on a CPU; from
             2048 rows on a Krylov space of K and K⁻¹ instead where that proves that nothing is cut off (to 1e-7)
gram         float64 K, all its eigenvectors; the exact one on a GPU
cholesky     float64 K + λ s_max², factored; only for the damped inverse, κ = -1 without truncation
lanczos      Krylov space of K and g, reorthogonalised; approximate, for what is too large for the others
svd64        thin SVD in float64: the reference for all others
svd          thin SVD in the Jacobian's own precision: what was published, loses up to 20 % in float32"""
Mode = Literal["relative", "absolute"]

ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
ON_GRAM = ("adaptive", "tridiagonal", "gram", "cholesky", "lanczos")
"""Algorithms that need no more than K."""
ON_DEVICE = ("gram", "svd64", "svd")
"""Algorithms that a GPU does by itself."""
RESOLVED = 5e-7
"""Singular values, relative to the largest, down to which a float64 Gram matrix gives an update good to 1e-3."""
FLOAT32_GRAM = 1e-2
"""Least relative truncation at which a Gram matrix in float32 is accepted: its floor of 3e-4 with a margin."""
LEAST_DAMPING = 1e-10
"""Least λ at which K + λ s_max² is safely positive definite in rounding, for thousands of rows."""
LARGEST_KRYLOV_SPACE = 400


@dataclass(frozen=True)
class HalfInversion:
    """u = V diag(s^exponent [s > cut]) Uᵀ g for J = U diag(s) Vᵀ; ValueError says which value is impossible.

    With a damping λ, s^κ becomes s (s² + λ s_max²)^((κ-1)/2): for κ = -1 the filter s / (s² + λ s_max²) of Levenberg
    and Marquardt, u = Jᵀ (K + λ s_max²)⁻¹ g.
    """

    exponent: float = -0.5
    """κ: -1/2 half-inverse gradients, -1 Gauss-Newton, 0 orthogonalised gradient, +1 gradient Jᵀg."""
    truncation: float = 1e-5
    """τ: singular values up to τ s_max (relative) or τ (absolute) contribute nothing."""
    truncation_mode: Mode = "relative"
    algorithm: Algorithm = "auto"
    krylov_steps: int | None = None
    """Most Lanczos steps; None: a fifth of the side of K, at least 100, at most 400."""
    krylov_tolerance: float = 1e-2
    """Lanczos ends once J u differs by less than this, relatively, from what half the steps gave."""
    memory: int | None = None
    """Bytes that K and its eigenvectors may take; above, `auto` means lanczos, which then works on J itself."""
    damping: float = 0.0
    """λ, relative to the square of the largest singular value."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.exponent):
            raise ValueError(f"exponent must be a finite number, e.g. -0.5 for half-inverse gradients: {self.exponent}")
        if not (math.isfinite(self.truncation) and self.truncation >= 0):
            raise ValueError(f"truncation must be a finite number, not negative, e.g. 1e-5: {self.truncation}")
        if self.truncation_mode not in get_args(Mode):
            raise ValueError(f"truncation_mode is relative or absolute, not {self.truncation_mode!r}")
        if self.truncation_mode == "relative" and self.truncation >= 1:
            raise ValueError(f"a relative truncation of {self.truncation} drops everything; give one below 1")
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"no algorithm {self.algorithm!r}; known: {', '.join(ALGORITHMS)}")
        if self.krylov_steps is not None and self.krylov_steps < 1:
            raise ValueError(f"krylov_steps must be at least 1: {self.krylov_steps}")
        if not self.krylov_tolerance >= 0:
            raise ValueError(f"krylov_tolerance must not be negative: {self.krylov_tolerance}")
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"damping must be a finite number, not negative, e.g. 1e-3: {self.damping}")
        if self.algorithm == "cholesky" and not self.solvable:
            raise ValueError(
                f"algorithm cholesky solves (K + λ s_max²) q = g: give exponent -1, truncation 0 and a damping of at "
                f"least {LEAST_DAMPING:g}, not {self.exponent}, {self.truncation} and {self.damping}"
            )

    @property
    def solvable(self) -> bool:
        """Whether the update is the solution of one linear system, which takes no eigenvalues."""
        return self.exponent == -1.0 and self.truncation == 0.0 and self.damping >= LEAST_DAMPING

    @property
    def resolved(self) -> bool:
        """Whether K in float64 shows all of the spectrum that matters."""
        return self.damping >= RESOLVED**2 or (self.truncation_mode == "relative" and self.truncation >= RESOLVED)

    def steps(self, side: int) -> int:
        """Lanczos steps at most for K of this side."""
        wanted = self.krylov_steps or min(max(100, side // 5), LARGEST_KRYLOV_SPACE)
        return min(wanted, side)

    def algorithm_for(self, n: int, p: int, dtype: str, device: str = "cpu") -> str:
        """The algorithm for an n x p Jacobian: the one asked for, or the one that `auto` means."""
        if self.algorithm != "auto":
            return self.algorithm
        # What is resolved by its damping is so by a truncation of nothing.
        truncation = max(self.truncation, RESOLVED) if self.resolved else self.truncation
        mode = "relative" if self.resolved else self.truncation_mode
        name = choose(n, p, dtype, truncation, mode, device, self.memory)
        # A GPU finds s_max and solves at the price of all eigenvectors; a CPU factors in a fifth of the time.
        return "cholesky" if self.solvable and name == "tridiagonal" else name


class Report(NamedTuple):
    """What a half-inversion met; floats, so that compiled programs can return it."""

    kept_rank: Any
    """Singular values above the cut; of Lanczos: Ritz values, which are fewer."""
    largest_singular_value: Any
    smallest_kept: Any
    relative_cut: Any
    """The cut that was applied, divided by the largest singular value."""
    resolved: Any
    """0 where directions were dropped only because the Gram matrix cannot resolve them; else 1."""
    krylov_steps: Any
    krylov_change: Any
    """Relative difference of J u from what half the Lanczos steps gave: an upper estimate of its error."""

    def named(self, algorithm: str) -> dict[str, Any]:
        """By name; the Krylov entries only where there was a Krylov space, a rank where there was a spectrum."""
        entries = self._asdict()
        if algorithm == "cholesky":
            return {"largest_singular_value": self.largest_singular_value}
        if algorithm != "lanczos":
            del entries["krylov_steps"], entries["krylov_change"]
        return entries


def choose(
    n: int,
    p: int,
    dtype: str,
    truncation: float,
    truncation_mode: str = "relative",
    device: str = "cpu",
    memory: int | None = None,
) -> str:
    """The fastest algorithm that is accurate for an n x p Jacobian and this truncation.

    * K of the smaller side and its eigenvectors take 3 x 8 m² bytes; over the memory only `lanczos` is left, and the
      only approximate choice this function makes.
    * On a CPU, relative truncation >= 5e-7: `tridiagonal`, 1.0-1.5 times as fast as `gram`, 3-4 times as `svd`, 5-8
      times as `svd64` (measured at 512 x 2956, 448 x 9484 and 512 x 24896).
    * On a CPU otherwise: `adaptive`, because whether K resolves the kept spectrum shows only in its eigenvalues.
    * On a GPU tridiagonalisation is bound by memory latency and the host is far: `gram` where K resolves the
      truncation, else `svd64`.

    The precision of J (`dtype`) decides nothing but is checked: K and the last product are in float64 for both.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"a Jacobian in {dtype}; half-inversion knows float32 and float64")
    side = min(n, p)
    if memory is not None and 24 * side**2 > memory:
        return "lanczos"
    resolved = truncation_mode == "relative" and truncation >= RESOLVED
    if device.startswith("cpu"):
        return "tridiagonal" if resolved else "adaptive"
    return "gram" if resolved else "svd64"


def check_gram_precision(dtype: str, options: HalfInversion) -> None:
    """ValueError for a Gram matrix whose rounding is above the truncation."""
    coarse_enough = options.truncation_mode == "relative" and options.truncation >= FLOAT32_GRAM
    if dtype != "float64" and not coarse_enough:
        raise ValueError(
            f"a Gram matrix in {dtype} cannot resolve singular values below 3e-4 of the largest, the "
            f"{options.truncation_mode} truncation is {options.truncation:g}: form it in float64 "
            f"(on JAX with 64-bit types enabled), or give a relative truncation of at least {FLOAT32_GRAM:g}"
        )


def gram_weights(eigenvalues: np.ndarray, options: HalfInversion, power: float) -> tuple[np.ndarray, Report]:
    """(s² + damping)^power of the kept eigenvalues s² (ascending) of a Gram matrix, zero for the others."""
    largest = max(float(eigenvalues[-1]), 0.0)
    wanted = options.truncation**2 * (largest if options.truncation_mode == "relative" else 1.0)
    floor = 0.0 if options.damping >= RESOLVED**2 else RESOLVED**2 * largest
    kept = eigenvalues > max(wanted, floor)
    if options.damping and not wanted and not floor and largest > 0:
        # Damped ones count even where they round to zero or below.
        kept, eigenvalues = np.ones_like(kept), np.maximum(eigenvalues, 0.0)
    weights = np.zeros_like(eigenvalues)
    weights[kept] = (eigenvalues[kept] + options.damping * largest) ** power
    resolved = wanted >= floor or not np.any(eigenvalues <= floor)
    return weights, _report(np.sqrt(eigenvalues[kept]), math.sqrt(largest), math.sqrt(max(wanted, floor)), resolved)


def singular_weights(values: np.ndarray, options: HalfInversion) -> tuple[np.ndarray, Report]:
    """s^exponent, or its damped form, of the kept singular values (descending), zero for the others."""
    largest = float(values[0])
    cut = options.truncation * (largest if options.truncation_mode == "relative" else 1.0)
    kept = values > cut
    weights = np.zeros_like(values)
    if options.damping:
        damped = values[kept] ** 2 + options.damping * largest**2
        weights[kept] = values[kept] * damped ** ((options.exponent - 1) / 2)
    else:
        weights[kept] = values[kept] ** options.exponent
    return weights, _report(values[kept][::-1], largest, cut, True)


def _report(kept: np.ndarray, largest: float, cut: float, resolved: bool) -> Report:
    return Report(
        kept_rank=float(len(kept)),
        largest_singular_value=largest,
        smallest_kept=float(kept[0]) if len(kept) else 0.0,
        relative_cut=cut / largest if largest > 0 else 0.0,
        resolved=float(resolved),
        krylov_steps=0.0,
        krylov_change=0.0,
    )


FAILED = Report(*[math.nan] * len(Report._fields))
"""The report on numbers that are not finite."""
