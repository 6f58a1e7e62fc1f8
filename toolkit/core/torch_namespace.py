"""The array functions that solvers use, on torch, with NumPy's names and `axis` arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class TorchNamespace:
    """NumPy-like functions on torch tensors; the JAX twin is `JaxNamespace`."""

    where = staticmethod(torch.where)
    abs = staticmethod(torch.abs)
    sign = staticmethod(torch.sign)
    sqrt = staticmethod(torch.sqrt)
    log = staticmethod(torch.log)
    exp = staticmethod(torch.exp)
    isfinite = staticmethod(torch.isfinite)
    minimum = staticmethod(torch.minimum)
    maximum = staticmethod(torch.maximum)
    logical_and = staticmethod(torch.logical_and)
    logical_or = staticmethod(torch.logical_or)
    logical_not = staticmethod(torch.logical_not)
    zeros_like = staticmethod(torch.zeros_like)
    ones_like = staticmethod(torch.ones_like)
    full_like = staticmethod(torch.full_like)
    einsum = staticmethod(torch.einsum)
    matmul = staticmethod(torch.matmul)
    reshape = staticmethod(torch.reshape)
    broadcast_to = staticmethod(torch.broadcast_to)

    def sum(self, x: Any, axis: int | tuple[int, ...] | None = None) -> Any:
        return torch.sum(x) if axis is None else torch.sum(x, dim=axis)

    def mean(self, x: Any, axis: int | tuple[int, ...] | None = None) -> Any:
        return torch.mean(x) if axis is None else torch.mean(x, dim=axis)

    def max(self, x: Any, axis: int | tuple[int, ...] | None = None) -> Any:
        return torch.amax(x) if axis is None else torch.amax(x, dim=axis)

    def all(self, x: Any) -> Any:
        return torch.all(x)

    def any(self, x: Any) -> Any:
        return torch.any(x)

    def stack(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        return torch.stack(list(arrays), dim=axis)

    def concatenate(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        return torch.cat(list(arrays), dim=axis)

    def moveaxis(self, x: Any, source: int, destination: int) -> Any:
        return torch.movedim(x, source, destination)

    def eigh(self, matrices: Any) -> tuple[Any, Any]:
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors

    def svd(self, matrix: Any) -> tuple[Any, Any, Any]:
        """The thin one, (U, s, Vᵀ)."""
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right

    def astype(self, x: Any, dtype: str) -> Any:
        return x.to(getattr(torch, dtype))

    def solve(self, matrices: Any, vectors: Any) -> Any:
        return torch.linalg.solve(matrices, vectors[..., None])[..., 0]

    def eye(self, n: int, like: Any) -> Any:
        return torch.eye(n, dtype=like.dtype, device=like.device)
