"""K^p v of a large K from which nothing is cut off, in a Krylov space of K and K⁻¹: a few percent of the work.

Where every eigenvalue of K is above the cut σ = τ² s_max², the function to apply is smooth, and all that is cut off by
truncation is nothing. That is proven first, by a Cholesky factor of K − σ, which exists just then. With it

    span{v, Kv, (K − σ)⁻¹v, K²v, (K − σ)⁻²v, …},     K^p v ≈ |v| V f(Vᵀ K V) e₁,

takes vectors by the fourth root of the condition number of K, where Lanczos' recursion takes the square root
(Druskin & Knizhnerman, SIAM J. Matrix Anal. Appl. 19, 1998). Vectors are orthogonalised twice; the space grows until
the result changes by less than 1e-7. Where a block of K or Ritz values show that this would not pay, where the factor
does not exist or the space grows too large, there is no answer, and the caller decomposes K.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import linalg

from toolkit.core.half_inverse_choice import RESOLVED, HalfInversion, Report, gram_weights
from toolkit.core.half_inverse_lanczos import ritz_values

Array = np.ndarray
symv, potrf, potrs = (
    *linalg.get_blas_funcs(("symv",), dtype=np.float64),
    *linalg.get_lapack_funcs(("potrf", "potrs"), dtype=np.float64),
)
SMALLEST = 2048
"""Rows below which there is nothing to be won."""
SHARE = 14
"""A decomposition takes the time of n / SHARE vectors: products with K are bound by memory, as half of it is."""
PART = 4
"""A block of n / PART rows costs a sixtieth of a decomposition."""
CHECK_EVERY = 10
CONVERGED = 1e-7
"""Relative change of the result over the last CHECK_EVERY vectors."""
MARGIN = 1e-6
"""Of the cut, for the rounding of s_max and of the factor."""


def by_extended_krylov(gram: Array, vector: Array, options: HalfInversion, power: float) -> tuple[Array, Report] | None:
    """K^p v and the report if nothing is cut off and the space converges; else None. K (lower triangle) stays."""
    norm = float(np.linalg.norm(vector))
    if len(vector) < SMALLEST or norm == 0.0 or not np.isfinite(norm) or options.damping:
        return None
    limit, part = len(vector) // SHARE, len(vector) // PART
    # Eigenvalues of a principal block lie between those of K: a hopeless condition number shows at little cost.
    block = linalg.eigvalsh(gram[:part, :part], lower=True, check_finite=False)
    if not expected(block[-1], block[0]) < limit:
        return None
    smallest, largest = ritz_values(lambda v: symv(1.0, gram, v, lower=1), len(vector))
    if not expected(largest, min(smallest, float(block[0]))) < limit:
        return None
    wanted = options.truncation**2 * (largest if options.truncation_mode == "relative" else 1.0)
    cut = max(wanted, RESOLVED**2 * largest)
    factor = _factor_above(gram, cut * (1 + MARGIN))
    found = None if factor is None else _in_space(gram, factor, vector / norm, options, power)
    if found is None:
        return None
    result, report = found
    report = report._replace(kept_rank=float(len(vector)), largest_singular_value=float(np.sqrt(largest)))
    return norm * result, report._replace(relative_cut=float(np.sqrt(cut / largest)), resolved=1.0)


def expected(largest: float, smallest: float) -> float:
    """Vectors until the result has converged, two for every factor of (κ^¼ − 1) / (κ^¼ + 1)."""
    if not smallest > 0:
        return np.inf
    return (largest / smallest) ** 0.25 * -np.log(CONVERGED)


def _factor_above(gram: Array, cut: float) -> Array | None:
    """L of K − σ = L Lᵀ, which exists if all eigenvalues are above σ; None if not."""
    shifted = np.array(gram, order="F")
    shifted[np.diag_indices(len(gram))] -= cut
    factor, failed = potrf(shifted, lower=1, overwrite_a=1, clean=0)
    return None if failed else factor


def _in_space(
    gram: Array, factor: Array, start: Array, options: HalfInversion, power: float
) -> tuple[Array, Report] | None:
    """K^p v for a unit vector v; the report has the extreme Ritz values, those of K but for 1e-4."""
    n = len(start)
    limit = n // SHARE
    basis, images = np.empty((limit, n)), np.empty((limit, n))
    projected = np.zeros((limit, limit))
    size, before = 0, np.zeros(0)

    def append(w: Array) -> None:
        nonlocal size
        basis[size] = w
        images[size] = symv(1.0, gram, w, lower=1)
        column = basis[: size + 1] @ images[size]
        projected[size, : size + 1] = projected[: size + 1, size] = column
        size += 1

    append(start)
    forward, backward = images[0], basis[0]
    while size < limit:
        for turn in range(2):
            w: Any = forward if turn == 0 else potrs(factor, backward, lower=1)[0]
            length = np.linalg.norm(w)
            for _ in range(2):
                w = w - (basis[:size] @ w) @ basis[:size]
            left = np.linalg.norm(w)
            ended = left <= 1e-14 * length
            if ended or size == limit:
                break
            append(w / left)
            forward, backward = (images[size - 1], backward) if turn == 0 else (forward, basis[size - 1])
        else:
            ended = False
        if ended or size % CHECK_EVERY <= 1:
            values, vectors = np.linalg.eigh(projected[:size, :size])
            if not ended and expected(values[-1], values[0]) > limit:
                return None
            weights, report = gram_weights(values, options, power)
            y = vectors @ (weights * vectors[0])
            difference = y.copy()
            difference[: len(before)] -= before
            if ended or np.linalg.norm(difference) <= CONVERGED * np.linalg.norm(y):
                return y @ basis[:size], report
            before = y
    return None
