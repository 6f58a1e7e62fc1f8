"""Half-inversion where the Jacobian is, without the host: for GPUs, in the array functions both backends share.

The same mathematics as `half_inverse_host`, with the solvers a GPU is good at: K by float64 products of column or row
pieces, all its eigenvectors, or a thin SVD. Masks instead of branches, so that JAX can compile it; anything not finite
gives NaN everywhere.
"""

from __future__ import annotations

from typing import Any

from toolkit.core.half_inverse_choice import RESOLVED, HalfInversion, Report

PIECES = 16
"""Pieces of J that are converted to float64 one after another; each takes an eighth of a float32 J."""
SHORTEST_PIECE = 4096


def half_invert(
    xp: Any, jacobian: Any, gradient: Any, options: HalfInversion, algorithm: str, dtype: str
) -> tuple[Any, Report]:
    """u (P,) and the report, for J in `dtype` and the algorithms gram, svd64 and svd."""
    if algorithm in ("svd", "svd64"):
        dtype = "float64" if algorithm == "svd64" else dtype
        return by_svd(xp, xp.astype(jacobian, dtype), xp.astype(gradient, dtype), options)
    gram, gradient = gram_matrix(xp, jacobian), xp.astype(gradient, "float64")
    if jacobian.shape[0] <= jacobian.shape[1]:
        q, report = half_invert_gram(xp, gram, gradient, options)
        return transposed_product(xp, jacobian, q), report
    return half_invert_gram(xp, gram, transposed_product(xp, jacobian, gradient), options)


def half_invert_gram(xp: Any, gram: Any, vector: Any, options: HalfInversion) -> tuple[Any, Report]:
    """K^((κ-1)/2) v on the kept subspace by all eigenvectors of K (n, n)."""
    # Solvers may loop for ever, or raise, on NaN: they get zeros and the result NaN.
    finite = xp.all(xp.isfinite(gram)) & xp.all(xp.isfinite(vector))
    values, vectors = xp.eigh(xp.where(finite, gram, xp.zeros_like(gram)))
    largest = xp.maximum(values[-1], xp.zeros_like(values[-1]))
    wanted = options.truncation**2 * (largest if options.truncation_mode == "relative" else xp.ones_like(largest))
    floor = 0.0 * largest if options.damping >= RESOLVED**2 else RESOLVED**2 * largest
    cut = xp.maximum(wanted, floor)
    kept = values > cut
    if options.damping >= RESOLVED**2 and not options.truncation:
        # Damped ones count even where they round to zero or below.
        kept, values = xp.broadcast_to(largest > 0, values.shape), xp.maximum(values, 0 * values)
    damped = xp.where(kept, values + options.damping * largest, xp.ones_like(values))
    weights = xp.where(kept, damped ** ((options.exponent - 1) / 2), 0.0)
    resolved = (wanted >= floor) | xp.all(values > floor)
    q = xp.matmul(vectors, weights * xp.matmul(vector, vectors))
    q = xp.where(finite, q, xp.full_like(q, float("nan")))
    return q, _report(xp, xp.sqrt(xp.maximum(values, 0 * values)), kept, xp.sqrt(largest), xp.sqrt(cut), resolved)


def by_svd(xp: Any, jacobian: Any, gradient: Any, options: HalfInversion) -> tuple[Any, Report]:
    """The definition, by a thin SVD in the Jacobian's precision."""
    finite = xp.all(xp.isfinite(jacobian)) & xp.all(xp.isfinite(gradient))
    left, values, right = xp.svd(xp.where(finite, jacobian, xp.zeros_like(jacobian)))
    cut = options.truncation * (values[0] if options.truncation_mode == "relative" else xp.ones_like(values[0]))
    kept = values > cut
    safe = xp.where(kept, values, xp.ones_like(values))
    if options.damping:
        filtered = safe * (safe**2 + options.damping * values[0] ** 2) ** ((options.exponent - 1) / 2)
    else:
        filtered = safe**options.exponent
    weights = xp.where(kept, filtered, 0.0)
    u = xp.matmul(weights * xp.matmul(gradient, left), right)
    u = xp.where(finite, u, xp.full_like(u, float("nan")))
    return u, _report(xp, values, kept, values[0], cut, values[0] >= 0)


def gram_matrix(xp: Any, jacobian: Any) -> Any:
    """J Jᵀ or Jᵀ J, whichever is smaller, in float64."""
    wide = jacobian.shape[0] <= jacobian.shape[1]
    total = 0.0
    for piece in _pieces(jacobian.shape[1] if wide else jacobian.shape[0]):
        part = xp.astype(jacobian[:, piece] if wide else jacobian[piece], "float64")
        total = total + (xp.matmul(part, part.T) if wide else xp.matmul(part.T, part))
    return total


def transposed_product(xp: Any, jacobian: Any, q: Any) -> Any:
    """Jᵀ q in float64."""
    pieces = _pieces(jacobian.shape[1])
    return xp.concatenate([xp.matmul(q, xp.astype(jacobian[:, piece], "float64")) for piece in pieces])


def factored_gram(xp: Any, deltas: list[Any], activations: list[Any], bias: list[bool]) -> Any:
    """Σ_l (D_l D_lᵀ) ∘ (A_l A_lᵀ [+ 1]) in float64; see `half_inverse.factored_gram`."""
    batch, outputs, _ = deltas[0].shape
    total = 0.0
    for delta, activation, has_bias in zip(deltas, activations, bias, strict=True):
        d = xp.reshape(xp.astype(delta, "float64"), (batch * outputs, -1))
        a = xp.astype(activation, "float64")
        samples = xp.matmul(a, a.T) + float(has_bias)
        blocks = xp.reshape(xp.matmul(d, d.T), (batch, outputs, batch, outputs))
        total = total + xp.reshape(blocks * samples[:, None, :, None], (batch * outputs, batch * outputs))
    return total


def _pieces(length: int) -> list[slice]:
    width = max(SHORTEST_PIECE, -(-length // PIECES))
    return [slice(start, start + width) for start in range(0, length, width)]


def _report(xp: Any, values: Any, kept: Any, largest: Any, cut: Any, resolved: Any) -> Report:
    one, zero = xp.ones_like(values), xp.zeros_like(values)
    positive = largest > 0
    smallest = -xp.max(xp.where(kept, -values, -largest * one))
    return Report(
        kept_rank=xp.sum(xp.where(kept, one, zero)),
        largest_singular_value=largest,
        smallest_kept=xp.where(xp.any(kept), smallest, 0.0),
        relative_cut=xp.where(positive, cut / xp.where(positive, largest, xp.ones_like(largest)), 0.0),
        resolved=xp.where(resolved, xp.ones_like(largest), xp.zeros_like(largest)),
        krylov_steps=xp.zeros_like(largest),
        krylov_change=xp.zeros_like(largest),
    )
