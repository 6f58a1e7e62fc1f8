"""Half-inversion of a Jacobian: u = V diag(s^κ [s > cut]) Uᵀ g with J = U diag(s) Vᵀ.

κ = -1/2 gives half-inverse gradients (Schnell, Holl & Thuerey 2022, "Half-Inverse Gradients for Physical Deep
Learning", ICLR), -1 Gauss-Newton, 0 the orthogonalised gradient, +1 the gradient. Directions up to the cut, τ s_max
or τ, contribute nothing. With K = J Jᵀ

    u = Jᵀ q,     q = K^((κ-1)/2) g

so that neither V nor a dense P x n half-inverse is needed, and not even J where K and Jᵀ q are to be had otherwise:

    half_inverse(J, g, ...)                                   u; on arrays of torch or JAX, anywhere
    half_invert(backend, J, g, options)                       (u, report)
    half_invert_gram(backend, K, g, options)                  (q, report), then u = one backward pass with q
    half_invert_operator(backend, v -> K v, g, options)       (q, report), by Lanczos, nothing is formed
    half_invert_streamed(backend, i -> J_i, count, g, options)  (u, report), J never whole
    factored_gram(backend, deltas, activations, bias)         K of a network of dense layers, J never formed

The last five are for update rules: they run eagerly on torch, and eagerly or inside one compiled program on JAX;
they give NaN for anything not finite (`first_bad_row` finds where), and a report of scalars. q is float64, u has the
precision of J. No gradient flows through any of them. `HalfInversion` holds the options, `choose` the decision rule.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from toolkit.core.half_inverse_choice import ON_GRAM, Algorithm, HalfInversion, Mode, Report, check_gram_precision

if TYPE_CHECKING:
    # The backends bring PhiML along, which half-inversion has no use for.
    from toolkit.core.backend import Array, Backend

Reported = dict[str, Any]


def half_inverse(
    jacobian: Array,
    gradient: Array,
    exponent: float = -0.5,
    truncation: float = 1e-5,
    truncation_mode: Mode = "relative",
    algorithm: Algorithm = "auto",
) -> Array:
    """V diag(s^exponent [s > truncation · s_max]) Uᵀ g of an (n, P) Jacobian and (n,) gradient, both torch or JAX.

    The result (P,) has the Jacobian's precision. With truncation_mode "absolute" the cut is `truncation` itself.
    ValueError names the first row that is not finite; in a program compiled by JAX all of the result is NaN then.
    """
    options = HalfInversion(exponent, truncation, truncation_mode, algorithm)
    library = _library_of(jacobian, gradient)
    dtype = _check_shapes(jacobian, gradient)
    name = options.algorithm_for(jacobian.shape[0], jacobian.shape[1], dtype, library.device(jacobian))
    u, report = library.half_invert(jacobian, gradient, options, name)
    if library.known(u) and not float(report.kept_rank) >= 0:
        raise ValueError(_what_is_wrong(library, jacobian, gradient))
    return u


def half_invert(backend: Backend, jacobian: Array, gradient: Array, options: HalfInversion) -> tuple[Array, Reported]:
    """u (P,) in the precision of J (n, P), and the report by name."""
    library = _library(backend.name)
    dtype = _check_shapes(jacobian, gradient)
    name = options.algorithm_for(jacobian.shape[0], jacobian.shape[1], dtype, backend.device)
    u, report = library.half_invert(jacobian, gradient, options, name)
    return u, report.named(name)


def half_invert_gram(backend: Backend, gram: Array, gradient: Array, options: HalfInversion) -> tuple[Array, Reported]:
    """q = K^((κ-1)/2) g (n,) in float64 on the kept subspace, and the report by name, for K = J Jᵀ (n, n).

    What an SVD of J would still resolve and K does not, below 5e-7 s_max, is dropped; `report["resolved"]` is 0 then.
    ValueError for a float32 K and a relative truncation below 1e-2.
    """
    library = _library(backend.name)
    dtype = _check_shapes(gram, gradient, "Gram matrix")
    if gram.shape[0] != gram.shape[1]:
        raise ValueError(f"a Gram matrix is square, this one has the shape {tuple(gram.shape)}")
    check_gram_precision(dtype, options)
    name = _on_gram(options, len(gradient), backend.device)
    q, report = library.half_invert_gram(gram, gradient, options, name)
    return q, report.named(name)


def half_invert_operator(
    backend: Backend, gram_product: Callable[[Array], Array], gradient: Array, options: HalfInversion
) -> tuple[Array, Reported]:
    """q = K^((κ-1)/2) g (n,) in float64 from products v -> K v alone, by Lanczos' recursion.

    Vectors are float64, products may be less precise. On JAX give a traced gradient inside a compiled program, and
    the recursion is rolled; else every product is dispatched by itself. The algorithm of the options is not looked at.
    """
    q, report = _library(backend.name).half_invert_operator(gram_product, gradient, options)
    return q, report.named("lanczos")


def half_invert_streamed(
    backend: Backend, block: Callable[[Any], Array], count: int, gradient: Array, options: HalfInversion
) -> tuple[Array, Reported]:
    """u (count · c,) and the report from column blocks J_i = block(i) (n, c), all of one width.

    Each block is made twice, once for K and once for its part of u, and is never held beside another: n x n float64
    and one block are the memory. A narrower last block is filled with columns of zeros, whose part of u is zero.
    """
    if count < 1:
        raise ValueError(f"a Jacobian of {count} blocks; there must be at least one")
    name = _on_gram(options, len(gradient), backend.device)
    u, report = _library(backend.name).half_invert_streamed(block, count, gradient, options, name)
    return u, report.named(name)


def factored_gram(backend: Backend, deltas: list[Array], activations: list[Array], bias: list[bool]) -> Array:
    """K (B·d, B·d) in float64 of a network of dense layers, without its Jacobian.

    Layer l with input a (B, a_l) and pre-activation z (B, h_l) has J_l = D_l ⊗ [a, 1], where D_l = ∂y/∂z (B, d, h_l)
    for the d outputs per sample, so that

        J Jᵀ = Σ_l (D_l D_lᵀ) ∘ ((A_l A_lᵀ + 1) ⊗ 1 1ᵀ)

    with the 1 only where the layer has a bias. Rows are ordered by sample, then output. Σ h_l operations per entry
    instead of P.
    """
    if not len(deltas) == len(activations) == len(bias) or not deltas:
        raise ValueError(
            f"deltas, activations and bias of the same layers, at least one; got {len(deltas)}, {len(activations)} "
            f"and {len(bias)} of them"
        )
    for layer, (delta, activation) in enumerate(zip(deltas, activations, strict=True)):
        if delta.ndim != 3 or activation.ndim != 2 or tuple(delta.shape[:2]) != (len(activation), deltas[0].shape[1]):
            raise ValueError(
                f"layer {layer}: deltas (B, d, h) and activations (B, a) with one B and d for all layers; "
                f"got {tuple(delta.shape)} and {tuple(activation.shape)}"
            )
    return _library(backend.name).factored_gram(deltas, activations, bias)


def first_bad_row(backend: Backend, jacobian: Array, gradient: Array) -> int | None:
    """The first row in which J or g is not finite; None if there is none. Needs values, not traced arrays."""
    return _library(backend.name).first_bad_row(jacobian, gradient)


def _library(name: str) -> Any:
    return importlib.import_module(f"toolkit.core.{name}_spectrum")


def _library_of(*arrays: Any) -> Any:
    """The module for these arrays, told by the package of their type: the other library is not imported."""
    names = [type(array).__module__.split(".")[0] for array in arrays]
    found = {{"jaxlib": "jax"}.get(name, name) for name in names}
    if found not in ({"torch"}, {"jax"}):
        raise ValueError(f"Jacobian and gradient must both be arrays of torch or of JAX; got {' and '.join(names)}")
    return _library(found.pop())


def _check_shapes(matrix: Array, gradient: Array, what: str = "Jacobian") -> str:
    if matrix.ndim != 2 or gradient.ndim != 1 or matrix.shape[0] != gradient.shape[0] or 0 in matrix.shape:
        raise ValueError(
            f"a {what} of n rows and a gradient of n entries; got shapes {tuple(matrix.shape)} "
            f"and {tuple(gradient.shape)}"
        )
    for name, array in ((what, matrix), ("gradient", gradient)):
        dtype = str(array.dtype).removeprefix("torch.")
        if dtype not in ("float32", "float64"):
            raise ValueError(
                f"the {name} is {dtype}; half-inversion knows float32 and float64 (complex: real and imaginary parts "
                "as separate rows)"
            )
    return str(matrix.dtype).removeprefix("torch.")


def _on_gram(options: HalfInversion, n: int, device: str) -> str:
    name = options.algorithm_for(n, n, "float64", device)
    if options.algorithm == "auto" and name not in ON_GRAM:
        return "gram"
    if name not in ON_GRAM:
        raise ValueError(f"algorithm {name} needs the Jacobian itself; from products J Jᵀ: {', '.join(ON_GRAM)}")
    return name


def _what_is_wrong(library: Any, jacobian: Array, gradient: Array) -> str:
    row = library.first_bad_row(jacobian, gradient)
    if row is None:
        return "the entries of the Jacobian are too large or too small to be squared; scale it and the result"
    return f"row {row} of the Jacobian or the gradient is not finite (counted from 0); look at the sample it belongs to"


__all__ = [
    "HalfInversion",
    "Report",
    "factored_gram",
    "first_bad_row",
    "half_inverse",
    "half_invert",
    "half_invert_gram",
    "half_invert_operator",
    "half_invert_streamed",
]
