"""Half-inversion on the host, with NumPy and SciPy's LAPACK; torch and JAX on a CPU both end here, without copies.

    n <= P:  u = Jᵀ q,  q = K^((κ-1)/2) g,     K = J Jᵀ
    n >  P:  u = K^((κ-1)/2) Jᵀ g,             K = Jᵀ J

K is symmetric of the smaller side and accumulated in float64 from pieces of J, so that a float32 Jacobian never has a
float64 copy; both products with J are float64 by pieces too, because rounding there reaches every direction of u.
K^p g needs no eigenvectors of K: with K = Q T Qᵀ, T tridiagonal, it is Q T^p Qᵀ g, where Q is applied as Householder
reflections and only T is diagonalised (LAPACK sytrd, ormqr, stevd; Golub & Van Loan, Matrix Computations, 8.3-8.4).
Large K of which nothing is cut off need no decomposition at all (`half_inverse_smooth`).

Anything not finite gives NaN everywhere, never a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import linalg

from toolkit.core.half_inverse_choice import FAILED, HalfInversion, Report, gram_weights, singular_weights
from toolkit.core.half_inverse_lanczos import lanczos, largest_eigenvalue
from toolkit.core.half_inverse_smooth import by_extended_krylov

Array = np.ndarray
symv, syrk = linalg.get_blas_funcs(("symv", "syrk"), dtype=np.float64)
sytrd, sytrd_lwork, ormqr = linalg.get_lapack_funcs(("sytrd", "sytrd_lwork", "ormqr"), dtype=np.float64)
potrf, potrs = linalg.get_lapack_funcs(("potrf", "potrs"), dtype=np.float64)
PIECE = 2**18
"""Elements of J converted to float64 at a time for a product with a vector; 2 MB stay in cache."""
TILE = (128, 1024)
"""Rows and columns of a factored Gram matrix computed at a time."""
SMALLEST_SUM_OF_SQUARES = 1e-280
"""Below, the squares in K lose digits to underflow, down to all of them."""


def half_invert(jacobian: Array, gradient: Array, options: HalfInversion, algorithm: str) -> tuple[Array, Report]:
    """u (P,) in float64 and the report, for J (n, P) and g (n,)."""
    if not np.isfinite(gradient).all():
        return np.full(jacobian.shape[1], np.nan), FAILED
    if algorithm in ("svd", "svd64"):
        return by_svd(jacobian, gradient, options, "float64" if algorithm == "svd64" else jacobian.dtype)
    n, p = jacobian.shape
    if algorithm == "lanczos" and options.memory is not None and 8 * min(n, p) ** 2 > options.memory:
        q, report = by_lanczos(lambda v: product(jacobian, transposed_product(jacobian, v)), gradient, options)
        return transposed_product(jacobian, q), report
    gram = gram_matrix(jacobian)
    if not well_scaled(gram, jacobian):
        return np.full(p, np.nan), FAILED
    if n <= p:
        q, report = half_invert_gram(gram, gradient, options, algorithm)
        u = transposed_product(jacobian, q)
    else:
        u, report = half_invert_gram(gram, transposed_product(jacobian, gradient), options, algorithm)
    if algorithm == "adaptive" and not report.resolved:
        return by_svd(jacobian, gradient, options, "float64")
    return u, report


def half_invert_gram(gram: Array, vector: Array, options: HalfInversion, algorithm: str) -> tuple[Array, Report]:
    """K^((κ-1)/2) v on the kept subspace; K is overwritten, only its lower triangle in Fortran's order is read."""
    if not np.isfinite(vector).all():
        return np.full(len(vector), np.nan), FAILED
    if algorithm == "lanczos":
        return by_lanczos(lambda v: symv(1.0, gram, v, lower=1), vector, options)
    if algorithm == "cholesky":
        return by_cholesky(gram, vector, options)
    power = (options.exponent - 1) / 2
    if algorithm == "gram" or len(vector) < 3:  # reflections need three rows
        values, vectors = linalg.eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
        weights, report = gram_weights(values, options, power)
        return vectors @ (weights * (vectors.T @ vector)), report
    return by_extended_krylov(gram, vector, options, power) or by_tridiagonal(gram, vector, options, power)


def half_invert_given_gram(gram: Array, vector: Array, options: HalfInversion, algorithm: str) -> tuple[Array, Report]:
    """The same for all of K, which stays as it is."""
    # K is symmetric: its transpose is K in LAPACK's order, and copied without being turned.
    copy = np.array(gram.T, dtype=np.float64, order="F")
    if not (np.isfinite(copy).all() and well_scaled(copy)):
        return np.full(len(vector), np.nan), FAILED
    return half_invert_gram(copy, vector, options, algorithm)


def half_invert_streamed(
    block: Callable[[int], Array], count: int, gradient: Array, options: HalfInversion, algorithm: str
) -> tuple[Array, Report]:
    """u from column blocks of J, each made once for K and once for Jᵀ q."""
    gram = np.zeros((len(gradient), len(gradient)), order="F")
    for i in range(count):
        add_to_gram(gram, block(i))
    if well_scaled(gram):
        q, report = half_invert_gram(gram, gradient, options, algorithm)
    else:
        q, report = np.full(len(gradient), np.nan), FAILED
    return np.concatenate([transposed_product(block(i), q) for i in range(count)]), report


def by_tridiagonal(gram: Array, vector: Array, options: HalfInversion, power: float) -> tuple[Array, Report]:
    """Q T^p Qᵀ v with the reflections left where `sytrd` puts them, below the subdiagonal of K."""
    n = len(vector)
    space = int(sytrd_lwork(n, lower=1)[0])
    reflections, diagonal, off_diagonal, scales, _ = sytrd(gram, lower=1, lwork=space, overwrite_a=1)
    below = reflections[1:, :-1]
    values, vectors = linalg.eigh_tridiagonal(diagonal, off_diagonal, lapack_driver="stevd", check_finite=False)
    weights, report = gram_weights(values, options, power)
    x = np.array(vector, dtype=np.float64)
    x[1:] = ormqr("L", "T", below, scales, x[1:, None], 64)[0][:, 0]
    x = vectors @ (weights * (vectors.T @ x))
    x[1:] = ormqr("L", "N", below, scales, x[1:, None], 64)[0][:, 0]
    return x, report


def by_cholesky(gram: Array, vector: Array, options: HalfInversion) -> tuple[Array, Report]:
    """(K + λ s_max²)⁻¹ v without any decomposition but one triangular; zero for K = 0."""
    n = len(vector)
    largest = largest_eigenvalue(lambda v: symv(1.0, gram, v, lower=1), n)
    report = Report(float(n), float(np.sqrt(largest)), *[0.0] * 2, resolved=1.0, krylov_steps=0.0, krylov_change=0.0)
    if largest == 0.0:
        return np.zeros(n), report._replace(kept_rank=0.0)
    gram[np.diag_indices(n)] += options.damping * largest
    factor, failed = potrf(gram, lower=1, overwrite_a=1, clean=0)
    if failed:
        return np.full(n, np.nan), FAILED
    return potrs(factor, np.array(vector, dtype=np.float64), lower=1)[0], report


def by_svd(jacobian: Array, gradient: Array, options: HalfInversion, dtype: Any) -> tuple[Array, Report]:
    """The definition, by a thin SVD in the given precision."""
    n, p = jacobian.shape
    if not np.isfinite(jacobian).all():
        return np.full(p, np.nan), FAILED
    # LAPACK is faster on tall matrices by 2-5 times, and Jᵀ is already in its order.
    tall = np.array(jacobian.T if n <= p else jacobian, dtype=dtype, order="F")
    left, values, right = linalg.svd(tall, full_matrices=False, overwrite_a=True, check_finite=False)
    v, u = (left, right.T) if n <= p else (right.T, left)
    weights, report = singular_weights(values, options)
    return v @ (weights * (gradient.astype(dtype) @ u)), report


def by_lanczos(apply: Callable[[Array], Array], vector: Array, options: HalfInversion) -> tuple[Array, Report]:
    """K^((κ-1)/2) v from products with K."""
    n = len(vector)
    space = np.empty((options.steps(n) + 1, n))
    basis, y, report = lanczos(apply, np.asarray(vector, dtype=np.float64), options, space)
    return y @ basis, report


def gram_matrix(jacobian: Array) -> Array:
    """Lower triangle (in Fortran's order) of J Jᵀ or Jᵀ J, whichever is smaller, in float64."""
    side = min(jacobian.shape)
    gram = np.zeros((side, side), order="F")
    add_to_gram(gram, jacobian)
    return gram


def add_to_gram(gram: Array, block: Array) -> None:
    """K += C Cᵀ, or Cᵀ C if C has not as many rows as K, in the lower triangle of K in Fortran's order."""
    wide = len(block) == len(gram)
    if block.dtype == np.float64 and block.flags.c_contiguous:
        syrk(1.0, block.T, trans=int(wide), beta=1.0, c=gram, overwrite_c=1, lower=1)
        return
    width = min(max(len(gram), 256), 2048)
    space = np.empty(len(gram) * width)
    for start in range(0, block.shape[1 if wide else 0], width):
        piece = block[:, start : start + width] if wide else block[start : start + width]
        converted = space[: piece.size].reshape(piece.shape)
        np.copyto(converted, piece)
        syrk(1.0, converted.T, trans=int(wide), beta=1.0, c=gram, overwrite_c=1, lower=1)


def well_scaled(gram: Array, jacobian: Array | None = None) -> bool:
    """Whether K is finite and, unless J is zero, not lost to underflow; a NaN in J shows on its diagonal."""
    total = float(np.sum(np.diagonal(gram)))
    if not np.isfinite(total):
        return False
    return total > SMALLEST_SUM_OF_SQUARES or (total == 0.0 and (jacobian is None or not jacobian.any()))


def transposed_product(jacobian: Array, q: Array) -> Array:
    """Jᵀ q in float64."""
    n, p = jacobian.shape
    if jacobian.dtype == np.float64:
        return q @ jacobian
    result = np.zeros(p)
    width = min(p, 2**15)
    height = max(1, PIECE // width)
    for column in range(0, p, width):
        columns = slice(column, column + width)
        for row in range(0, n, height):
            rows = slice(row, row + height)
            result[columns] += q[rows] @ jacobian[rows, columns].astype(np.float64)
    return result


def product(jacobian: Array, v: Array) -> Array:
    """J v in float64."""
    if jacobian.dtype == np.float64:
        return jacobian @ v
    height = max(1, PIECE // jacobian.shape[1])
    rows = range(0, len(jacobian), height)
    return np.concatenate([jacobian[row : row + height].astype(np.float64) @ v for row in rows])


def factored_gram(deltas: list[Array], activations: list[Array], bias: list[bool]) -> Array:
    """Σ_l (D_l D_lᵀ) ∘ (A_l A_lᵀ [+ 1]) in float64, tile by tile below the diagonal, mirrored at the end."""
    # What overflows is infinite or NaN in the result, which callers look for; a warning would come from a callback.
    with np.errstate(over="ignore", invalid="ignore"):
        return _factored_gram(deltas, activations, bias)


def _factored_gram(deltas: list[Array], activations: list[Array], bias: list[bool]) -> Array:
    batch, outputs, _ = deltas[0].shape
    n = batch * outputs
    rows = [np.asarray(delta, dtype=np.float64).reshape(n, -1) for delta in deltas]
    samples = [a @ a.T + float(b) for a, b in zip((np.asarray(a, np.float64) for a in activations), bias, strict=True)]
    gram = np.empty((n, n))
    high, wide = max(1, TILE[0] // outputs), max(1, TILE[1] // outputs)
    for top in range(0, batch, high):
        bottom = min(top + high, batch)
        down = slice(top * outputs, bottom * outputs)
        for left in range(0, bottom, wide):
            right = min(left + wide, bottom)
            across = slice(left * outputs, right * outputs)
            tile = sum(
                _layer_tile(d[down], d[across], s[top:bottom, left:right], outputs)
                for d, s in zip(rows, samples, strict=True)
            )
            gram[down, across] = tile
            gram[across, down] = np.transpose(tile)
    return gram


def _layer_tile(down: Array, across: Array, samples: Array, outputs: int) -> Array:
    tile = down @ across.T
    # Widened to every column beforehand, the factor is contiguous along the rows of the tile.
    widened = np.repeat(samples, outputs, axis=1)
    blocks = tile.reshape(len(samples), outputs, -1)
    blocks *= widened[:, None, :]
    return tile
