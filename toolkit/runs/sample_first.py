"""The usual order of dimensions, `sample` before `t` and `step`, for files that grow along the latter.

A stream has the dimension that it grows along first, because that is how its format works. xarray's own `transpose` of
a variable that has not been read yet would turn every slice into a list of single values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from toolkit.runs import names


def sample_first(dataset: xr.Dataset) -> xr.Dataset:
    """The Dataset with `sample` before the dimension that its file grows along; nothing is read."""
    moved = {}
    for name, array in dataset.data_vars.items():
        order = _order(array.dims)
        if order != tuple(range(array.ndim)):
            moved[name] = _reordered(array.variable, order)
    return dataset.assign(moved) if moved else dataset


def _order(dims: Sequence[Any]) -> tuple[int, ...]:
    """Positions of the dimensions in their usual order."""
    order = list(range(len(dims)))
    for i, (first, second) in enumerate(itertools.pairwise(dims)):
        if first in names.APPENDABLE and second == names.SAMPLE:
            order[i], order[i + 1] = i + 1, i
    return tuple(order)


def _reordered(variable: xr.Variable, order: tuple[int, ...]) -> xr.Variable:
    lazy: Any = indexing.MemoryCachedArray(indexing.LazilyIndexedArray(_Reordered(variable, order)))
    return xr.Variable([variable.dims[i] for i in order], lazy, variable.attrs, dict(variable.encoding))


class _Reordered(BackendArray):
    """A variable with its dimensions in another order, read when it is indexed."""

    def __init__(self, variable: xr.Variable, order: tuple[int, ...]):
        self._variable, self._order = variable, order
        self.shape = tuple(variable.shape[i] for i in order)
        self.dtype = variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        by_dim = {self._variable.dims[i]: part for i, part in zip(self._order, key, strict=True)}
        found = self._variable.isel(by_dim)
        return found.transpose(*[d for d in (self._variable.dims[i] for i in self._order) if d in found.dims]).values
