"""The array functions that solvers use, on JAX, with NumPy's names and `axis` arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp


class JaxNamespace:
    """NumPy-like functions on JAX arrays; the torch twin is `TorchNamespace`."""

    where = staticmethod(jnp.where)
    abs = staticmethod(jnp.abs)
    sign = staticmethod(jnp.sign)
    sqrt = staticmethod(jnp.sqrt)
    log = staticmethod(jnp.log)
    exp = staticmethod(jnp.exp)
    isfinite = staticmethod(jnp.isfinite)
    minimum = staticmethod(jnp.minimum)
    maximum = staticmethod(jnp.maximum)
    logical_and = staticmethod(jnp.logical_and)
    logical_or = staticmethod(jnp.logical_or)
    logical_not = staticmethod(jnp.logical_not)
    zeros_like = staticmethod(jnp.zeros_like)
    ones_like = staticmethod(jnp.ones_like)
    full_like = staticmethod(jnp.full_like)
    einsum = staticmethod(jnp.einsum)
    matmul = staticmethod(jnp.matmul)
    reshape = staticmethod(jnp.reshape)
    broadcast_to = staticmethod(jnp.broadcast_to)
    all = staticmethod(jnp.all)
    any = staticmethod(jnp.any)
    moveaxis = staticmethod(jnp.moveaxis)

    def sum(self, x: Any, axis: int | tuple[int, ...] | None = None) -> Any:
        return jnp.sum(x, axis=axis)

    def mean(self, x: Any, axis: int | tuple[int, ...] | None = None) -> Any:
        return jnp.mean(x, axis=axis)

    def max(self, x: Any, axis: int | tuple[int, ...] | None = None) -> Any:
        return jnp.max(x, axis=axis)

    def stack(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        return jnp.stack(list(arrays), axis=axis)

    def concatenate(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        return jnp.concatenate(list(arrays), axis=axis)

    def eigh(self, matrices: Any) -> tuple[Any, Any]:
        values, vectors = jnp.linalg.eigh(matrices)
        return values, vectors

    def svd(self, matrix: Any) -> tuple[Any, Any, Any]:
        """The thin one, (U, s, Vᵀ)."""
        left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
        return left, values, right

    def astype(self, x: Any, dtype: str) -> Any:
        return x.astype(dtype)

    def solve(self, matrices: Any, vectors: Any) -> Any:
        return jnp.linalg.solve(matrices, vectors[..., None])[..., 0]

    def eye(self, n: int, like: Any) -> Any:
        return jnp.eye(n, dtype=like.dtype)
