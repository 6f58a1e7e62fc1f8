"""Half-inversion in a Krylov space: u = Jᵀ q with q near K^((κ-1)/2) g from products with K = J Jᵀ alone.

k steps of Lanczos' recursion from g give orthonormal V (k, n) with K Vᵀ = Vᵀ T + β v eᵀ, T tridiagonal; every new
vector is orthogonalised twice against all before it, in float64. T = L Lᵀ with L lower bidiagonal, and L with one more
row, B, is what Golub and Kahan's bidiagonalisation of J gives (Golub & Van Loan, Matrix Computations, 10.4):

    J P = V' B,     P = Jᵀ Vᵀ L⁻ᵀ,     u = ‖g‖ P (BᵀB)^((κ-1)/2) l₁ e₁,     q = ‖g‖ Vᵀ L⁻ᵀ (...),     J u = V' B (...)

without P or J. That is LSQR for κ = -1 (Paige & Saunders 1982) and its counterpart for other κ. The plain function
of T, which is Craig's method for κ = -1, has the same error in u and 5-30 times the error in J u, what the loss sees:
its Ritz values fall towards zero before they have converged, those of BᵀB stay above it.

Large singular values come first: J u converges long before u does, and ends the recursion, when what half the steps
gave differs by less than the tolerance; the change over the last few steps says too little where spectra decay slowly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import linalg

from toolkit.core.half_inverse_choice import FAILED, LARGEST_KRYLOV_SPACE, HalfInversion, Report, gram_weights

CHECK_EVERY = 10
CONVERGED = 1e-8
"""Residual of an eigenvalue, relative to it, at which it counts as found."""
BREAKDOWN = 1e-14
"""Off-diagonal entry, relative to the largest diagonal one, at which the Krylov space is complete: squares of
singular values that K resolves are as large."""


def lanczos(
    product: Callable[[Any], Any], vector: Any, options: HalfInversion, basis: Any
) -> tuple[Any, np.ndarray, Report]:
    """(V, y, report) with K^((κ-1)/2) v ≈ Vᵀ y, for NumPy arrays and torch tensors in float64.

    basis: space for V, one row more than `options.steps(n)`; overwritten.
    """
    norm = math.sqrt(float(vector @ vector))
    if norm == 0.0:
        basis[0] = vector
        return basis[:1], np.zeros(1), gram_weights(np.zeros(1), options, 1.0)[1]
    basis[0] = vector / norm
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    history: list[np.ndarray] = []
    while True:
        w, alpha, beta = extended(product, basis[: len(diagonal) + 1])
        if not (math.isfinite(alpha) and math.isfinite(beta)):
            return basis[:1], np.full(1, math.nan), FAILED
        diagonal.append(alpha)
        off_diagonal.append(beta)
        steps = len(diagonal)
        ended = beta <= BREAKDOWN * max(diagonal) or steps == len(basis) - 1
        if ended or steps % CHECK_EVERY == 0:
            y, output, report = projected(np.array(diagonal), np.array(off_diagonal), history, options)
            history.append(output)
            if ended or report.krylov_change < options.krylov_tolerance:
                return basis[:steps], norm * y, report
        basis[steps] = w / beta


def largest_eigenvalue(product: Callable[[Any], Any], n: int) -> float:
    """Of K (n, n), with a residual of 1e-8 of it.

    The error is the square of that where the next eigenvalue lies clearly below, and never more than it.
    """
    return ritz_values(product, n)[1]


def ritz_values(product: Callable[[Any], Any], n: int) -> tuple[float, float]:
    """(an upper bound of the smallest eigenvalue, the largest) of K (n, n), by Lanczos' recursion from a random vector
    until the largest has converged."""
    limit = min(n, LARGEST_KRYLOV_SPACE)
    basis, diagonal, off_diagonal = np.empty((limit + 1, n)), [], []
    start = np.random.default_rng(0).standard_normal(n)
    basis[0] = start / np.linalg.norm(start)
    while True:
        w, alpha, beta = extended(product, basis[: len(diagonal) + 1])
        diagonal.append(alpha)
        steps = len(diagonal)
        ended = beta <= BREAKDOWN * max(diagonal) or steps == limit
        if ended or steps % CHECK_EVERY == 0:
            values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
            if ended or beta * abs(vectors[-1, -1]) <= CONVERGED * values[-1]:
                return float(values[0]), max(float(values[-1]), 0.0)
        off_diagonal.append(beta)
        basis[steps] = w / beta


def extended(product: Callable[[Any], Any], basis: Any) -> tuple[Any, float, float]:
    """K times the last basis vector, orthogonal to all; its component along that vector, and its length."""
    w = product(basis[-1])
    alpha = float(basis[-1] @ w)
    for _ in range(2):
        w = w - basis.T @ (basis @ w)
    return w, alpha, math.sqrt(float(w @ w))


def projected(
    diagonal: np.ndarray, off_diagonal: np.ndarray, history: Sequence[np.ndarray] | np.ndarray, options: HalfInversion
) -> tuple[np.ndarray, np.ndarray, Report]:
    """(y, J u, report) for q = ‖g‖ Vᵀ y, with J u in terms of v' and for ‖g‖ = 1.

    off_diagonal ends with the β that leads out of the space; history has J u of every check so far.
    """
    pivots, below = bidiagonal(diagonal, off_diagonal)
    size, k = len(pivots), len(diagonal)
    y, output = np.zeros(k), np.zeros(k + 1)
    if size == 0:
        return y, output, gram_weights(np.zeros(1), options, 1.0)[1]._replace(krylov_steps=float(k))
    squares, couplings = pivots**2 + below**2, pivots[1:] * below[:-1]
    if size == 1:
        values, vectors = squares, np.ones((1, 1))
    else:
        values, vectors = linalg.eigh_tridiagonal(squares, couplings, lapack_driver="stevd", check_finite=False)
    weights, report = gram_weights(values, options, (options.exponent - 1) / 2)
    x = pivots[0] * (vectors @ (weights * vectors[0]))
    output[:size] = pivots * x
    output[1 : size + 1] += below * x
    y[:size] = linalg.solve_banded((0, 1), np.stack([np.append(0.0, below[:-1]), pivots]), x, check_finite=False)
    return y, output, report._replace(krylov_steps=float(k), krylov_change=_change(output, history))


def bidiagonal(diagonal: np.ndarray, off_diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal and subdiagonal of B with T = L Lᵀ, up to where T is singular in rounding."""
    least = BREAKDOWN * float(np.max(diagonal))
    pivots, below = [], []
    for a, b in zip(diagonal.tolist(), off_diagonal.tolist(), strict=True):
        square = a - (below[-1] ** 2 if below else 0.0)
        if square <= least:
            break
        pivots.append(math.sqrt(square))
        below.append(b / pivots[-1])
    return np.array(pivots), np.array(below)


def _change(output: np.ndarray, history: Sequence[np.ndarray] | np.ndarray) -> float:
    """Relative difference from the check at half the steps, or from nothing if there was none."""
    difference, checks = output.copy(), (len(output) - 1) // 2 // CHECK_EVERY
    if checks:
        before = history[checks - 1][: len(output)]
        difference[: len(before)] -= before
    size = float(np.linalg.norm(output))
    return float(np.linalg.norm(difference)) / size if size > 0 else 0.0
