"""Half-inversion of JAX arrays, also inside compiled programs: LAPACK on XLA's own buffers for the CPU, XLA on a GPU.

On the CPU a compiled program calls the host with its buffers as they are (`buffer_callback`): `pure_callback` copies a
Jacobian several times, 35 ms of 200 ms at 512 x 24896, and dispatches JAX from inside XLA's threads. Without 64-bit
types enabled JAX turns float64 into float32 with no more than a warning: everything here runs under `enable_x64` and
checks what it got. Nothing is differentiated through: the result is a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.buffer_callback import buffer_callback

from toolkit.core import half_inverse_device as on_device
from toolkit.core import half_inverse_host as on_host
from toolkit.core.half_inverse_choice import FAILED, ON_DEVICE, HalfInversion, Report
from toolkit.core.half_inverse_lanczos import BREAKDOWN, CHECK_EVERY, lanczos, projected
from toolkit.core.jax_namespace import JaxNamespace

Array = jax.Array
XP = JaxNamespace()


def known(array: Any) -> bool:
    """Whether the values are there to be looked at, not traced for a compiled program."""
    return not isinstance(array, Tracer)


def first_bad_row(jacobian: Array, gradient: Array) -> int | None:
    """The first row with a number that is not finite, in the Jacobian or the gradient."""
    bad = ~(np.isfinite(np.asarray(jacobian)).all(axis=1) & np.isfinite(np.asarray(gradient)))
    return int(np.argmax(bad)) if bad.any() else None


def device(array: Any) -> str:
    """cpu or gpu; for traced arrays where JAX would put the program."""
    if known(array):
        platform = next(iter(array.devices())).platform
    else:
        default = jax.default_device.value
        platform = getattr(default, "platform", default) or jax.default_backend()
    return "cpu" if platform == "cpu" else "gpu"


def half_invert(
    jacobian: Array, gradient: Array, options: HalfInversion, algorithm: str, where: str | None = None
) -> tuple[Array, Report]:
    """u (P,) in J's precision and the report; `where`: cpu or gpu, the array's own if None."""
    jacobian, gradient = jax.lax.stop_gradient((jacobian, gradient))
    where = where or device(jacobian)
    p, dtype = jacobian.shape[1], jacobian.dtype

    if where == "cpu":

        def run(j: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, Report]:
            return on_host.half_invert(j, g, options, algorithm)

        return _on_host(run, (p,), str(dtype), jacobian, gradient)
    with jax.enable_x64(True):
        if algorithm in ON_DEVICE:
            u, report = on_device.half_invert(XP, jacobian, gradient, options, algorithm, str(dtype))
            return u.astype(dtype), report
        gradient = gradient.astype(jnp.float64)
        gram = _float64(on_device.gram_matrix(XP, jacobian))
        wide = jacobian.shape[0] <= p
        vector = gradient if wide else on_device.transposed_product(XP, jacobian, gradient)
        u, report = half_invert_gram(gram, vector, options, algorithm, where)
        u = on_device.transposed_product(XP, jacobian, u) if wide else u
        if algorithm == "adaptive":
            u, report = jax.lax.cond(
                report.resolved == 0,
                lambda: on_device.half_invert(XP, jacobian, gradient, options, "svd64", "float64"),
                lambda: (u, report),
            )
        return u.astype(dtype), report


def half_invert_gram(
    gram: Array, vector: Array, options: HalfInversion, algorithm: str, where: str | None = None
) -> tuple[Array, Report]:
    """q = K^((κ-1)/2) v in float64 and the report."""
    gram, vector = jax.lax.stop_gradient((gram, vector))
    where = where or device(gram)
    with jax.enable_x64(True):
        if algorithm == "lanczos" and where != "cpu":
            gram = gram.astype(jnp.float64)
            return half_invert_operator(lambda v: gram @ v, vector, options, where)
        if algorithm == "gram" and where != "cpu":
            return on_device.half_invert_gram(XP, gram.astype(jnp.float64), vector.astype(jnp.float64), options)

        def run(k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, Report]:
            return on_host.half_invert_given_gram(k, v, options, algorithm)

        return _on_host(run, vector.shape, "float64", gram, vector, where=where)


def half_invert_operator(
    product: Callable[[Array], Array], vector: Array, options: HalfInversion, where: str | None = None
) -> tuple[Array, Report]:
    """q from products with K, by Lanczos in float64; a rolled loop in compiled programs."""
    where = where or device(vector)
    with jax.enable_x64(True):
        if known(vector):
            space = np.empty((options.steps(len(vector)) + 1, len(vector)))
            start = np.asarray(vector, dtype=np.float64)
            basis, y, report = lanczos(lambda v: np.asarray(product(jnp.asarray(v))), start, options, space)
            return jnp.asarray(y @ basis), report
        return _rolled_lanczos(product, jax.lax.stop_gradient(vector).astype(jnp.float64), options, where)


def _rolled_lanczos(
    product: Callable[[Array], Array], vector: Array, options: HalfInversion, where: str
) -> tuple[Array, Report]:
    """`half_inverse_lanczos.lanczos` with a full-size basis; rows not reached yet are zero and change nothing."""
    limit = options.steps(len(vector))
    norm = jnp.sqrt(vector @ vector)
    basis = jnp.zeros((limit + 1, len(vector))).at[0].set(vector / jnp.where(norm == 0, 1.0, norm))

    def extend(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, diagonal, off_diagonal = state
        w = _float64(product(basis[j]).astype(jnp.float64))
        diagonal = diagonal.at[j].set(basis[j] @ w)
        for _ in range(2):
            w = w - (basis @ w) @ basis
        beta = jnp.sqrt(w @ w)
        # A complete space goes on with zeros, which decouple from T; NaN compares false and goes on as NaN.
        ended = beta <= BREAKDOWN * jnp.max(diagonal)
        basis = basis.at[j + 1].set(jnp.where(ended, 0.0, w / jnp.where(ended, 1.0, beta)))
        return basis, diagonal, off_diagonal.at[j].set(jnp.where(ended, 0.0, beta))

    def ritz(diagonal: np.ndarray, off_diagonal: np.ndarray, reached: np.ndarray, history: np.ndarray) -> Any:
        steps = int(reached)
        both = np.zeros((2, limit + 1))
        if not (np.isfinite(diagonal[:steps]).all() and np.isfinite(off_diagonal[:steps]).all()):
            return np.full_like(both, np.nan), FAILED
        ends = np.flatnonzero(off_diagonal[:steps] == 0)
        size = int(ends[0]) + 1 if len(ends) else steps
        both[0, :size], both[1, : size + 1], report = projected(diagonal[:size], off_diagonal[:size], history, options)
        return both, report

    def more(state: tuple[Any, ...]) -> tuple[Any, ...]:
        bases, steps, _, history, _, _ = state
        stop = jnp.minimum(steps + CHECK_EVERY, limit)
        bases = jax.lax.fori_loop(steps, stop, extend, bases)
        both, report = _on_host(ritz, (2, limit + 1), "float64", *bases[1:], stop, history, where=where)
        history = history.at[steps // CHECK_EVERY].set(both[1])
        ended = (stop >= limit) | (bases[2][stop - 1] == 0) | ~jnp.isfinite(report.krylov_change)
        ended = ended | (report.krylov_change < options.krylov_tolerance)
        return bases, stop, norm * both[0], history, report, ended

    empty, report = jnp.zeros(limit), Report(*[jnp.zeros(())] * len(Report._fields))
    history = jnp.zeros((-(-limit // CHECK_EVERY), limit + 1))
    start = ((basis, empty, empty), jnp.int64(0), jnp.zeros(limit + 1), history, report, jnp.bool_(False))
    (basis, *_), _, y, _, report, _ = jax.lax.while_loop(lambda state: ~state[-1], more, start)
    return y @ basis, report


def half_invert_streamed(
    block: Callable[[Any], Array], count: int, gradient: Array, options: HalfInversion, algorithm: str
) -> tuple[Array, Report]:
    """u (count · c,) from column blocks J_i (n, c), each made twice and then forgotten; i is traced if g is."""
    where = device(gradient)
    with jax.enable_x64(True):
        if known(gradient) and where == "cpu":
            dtype = block(0).dtype
            u, report = on_host.half_invert_streamed(
                lambda i: np.asarray(block(i)), count, np.asarray(gradient), options, algorithm
            )
            return jnp.asarray(u, dtype=dtype), report
        gradient = jax.lax.stop_gradient(gradient)
        n = len(gradient)

        def add(i: Array, gram: Array) -> Array:
            part = jax.lax.stop_gradient(block(i))
            if where == "cpu":
                return _add_on_host(gram, part)
            part = part.astype(jnp.float64)
            return gram + part @ part.T

        gram = _float64(jax.lax.fori_loop(0, count, add, jnp.zeros((n, n))))
        q, report = half_invert_gram(gram, gradient, options, algorithm, where)

        def pull(i: Array) -> Array:
            part = jax.lax.stop_gradient(block(i))
            return (q @ part.astype(jnp.float64)).astype(part.dtype)

        return jax.lax.map(pull, jnp.arange(count)).reshape(-1), report


def factored_gram(deltas: list[Array], activations: list[Array], bias: list[bool], where: str | None = None) -> Array:
    """See `toolkit.core.half_inverse.factored_gram`."""
    deltas, activations = jax.lax.stop_gradient((deltas, activations))
    where = where or device(deltas[0])
    with jax.enable_x64(True):
        if where != "cpu":
            return _float64(on_device.factored_gram(XP, deltas, activations, bias))
        n, layers = deltas[0].shape[0] * deltas[0].shape[1], len(deltas)

        def run(*arrays: np.ndarray) -> tuple[np.ndarray, Report]:
            return on_host.factored_gram(list(arrays[:layers]), list(arrays[layers:]), bias), FAILED

        return _on_host(run, (n, n), "float64", *deltas, *activations)[0]


def _on_host(
    function: Callable[..., tuple[np.ndarray, Report]],
    shape: tuple[int, ...],
    dtype: str,
    *arrays: Array,
    where: str = "cpu",
) -> tuple[Array, Report]:
    """function(*arrays) on the host, now or, for traced arrays, whenever the compiled program gets there."""
    if all(map(known, arrays)):
        result, report = function(*map(np.asarray, arrays))
        with jax.enable_x64(True):
            return jax.device_put(np.asarray(result, dtype=dtype), next(iter(arrays[0].devices()))), report
    with jax.enable_x64(True):
        types = (jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((len(Report._fields),), "float64"))
        if where == "cpu":

            def fill(context: Any, out: Any, *buffers: Any) -> None:
                result, report = function(*map(np.asarray, buffers))
                np.asarray(out[0])[...] = result
                np.asarray(out[1])[...] = report

            result, report = buffer_callback(fill, types, vmap_method="sequential")(*arrays)
        else:

            def give(*copies: Any) -> Any:
                # JAX converts what it hands over by the process-wide setting, not by that of this trace.
                if [copy.dtype for copy in copies] != [array.dtype for array in arrays]:
                    raise TypeError("JAX rounded float64 on its way to the host; set jax_enable_x64 for the process")
                result, report = function(*map(np.asarray, copies))
                return np.asarray(result, dtype=dtype), np.array(report)

            result, report = jax.pure_callback(give, types, *arrays, vmap_method="sequential")
        return result, Report(*report)


def _add_on_host(gram: Array, part: Array) -> Array:
    """K + C Cᵀ in the lower triangle (in Fortran's order), in K's own memory where XLA allows it."""

    def add(context: Any, out: Any, before: Any, part: Any) -> None:
        total = np.asarray(out)
        np.copyto(total, np.asarray(before))
        on_host.add_to_gram(total.T, np.asarray(part))

    call = buffer_callback(add, jax.ShapeDtypeStruct(gram.shape, "float64"), input_output_aliases={0: 0})
    return call(gram, part)


def _float64(array: Array) -> Array:
    if array.dtype != jnp.float64:
        raise TypeError(f"JAX gave {array.dtype} where float64 was asked for; enable it with jax.enable_x64(True)")
    return array
