"""From a labelled array to a PhiFlow field and back.

Files keep the grid of each variable as JSON text in its attribute `grid`, so that

    u = to_phiflow(run.fields.temperature)
    from_phiflow(field.laplace(u), like=run.fields.temperature)

is the cell-centred field on the same box with the same boundary, ready for PhiFlow's operators, and their result as an
array with the coordinates that the first one had.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr
from phi.field import Field
from phiml import math

from toolkit.core.errors import StorageError
from toolkit.physics.grid import BOUNDARY_WORDS, Grid
from toolkit.runs import names


def grid_text(grid: Grid) -> str:
    """A grid as JSON text, for an attribute: cells, extent and the boundary of every side."""
    sides = {axis + end: grid.side(axis, end) for axis in grid.axes for end in "-+"}
    return json.dumps({"cells": dict(grid.cells), "extent": dict(grid.extent), "boundary": sides})


def grid_from_attributes(attributes: Mapping[str, Any]) -> Grid:
    """The grid that `grid_text` described; StorageError if the attributes hold none."""
    text = attributes.get(names.GRID)
    if not isinstance(text, str):
        raise StorageError(
            f"the array has no attribute `{names.GRID}`; arithmetic may have dropped it, "
            "copy `attrs` from the variable it was made from"
        )
    content = json.loads(text)
    return Grid(content["cells"], content["extent"], content["boundary"])


def to_phiflow(array: xr.DataArray) -> Field:
    """Cell-centred PhiFlow field of an array on its grid.

    `x`, `y`, `z` become spatial; the components become the channel dimension `vector` with their names; every
    other dimension (`sample`, `t`, the axes of a sweep, …) becomes a batch dimension, with its labels if they are text.
    The values of a dask array are computed. Their precision is kept; PhiFlow's operators compute in that of
    `phiml.math.precision`.
    """
    grid = grid_from_attributes(array.attrs)
    for axis in grid.axes:
        if array.sizes.get(axis) != grid.cells[axis]:
            raise StorageError(
                f"{array.name or 'the array'} has {array.sizes.get(axis, 0)} values along {axis}, "
                f"its grid has {grid.cells[axis]} cells; select along other dimensions only"
            )
    kinds = [_dimension(str(dim), array) for dim in array.dims]
    # `tensor` would convert to the global precision of PhiML.
    return grid.field(math.wrap(array.values, *kinds))


def from_phiflow(field: Field, like: xr.DataArray) -> xr.DataArray:
    """The values of a cell-centred PhiFlow field on the grid of `like`, with the coordinates of `like`.

    The dimension `vector` becomes that of the components. The attribute `grid` is there if the boundary of the field is
    that of `like` or one word for all sides; StorageError if the field is not on the grid of `like`.
    """
    grid = grid_from_attributes(like.attrs)
    if not field.is_grid or not field.is_centered or dict(field.resolution.untyped_dict) != dict(grid.cells):
        raise StorageError(
            f"the field with {field.shape} is not cell-centred on the grid of {like.name or 'the array'}"
        )
    shape: Any = field.values.shape
    known = {_kind(str(dim)): str(dim) for dim in like.dims}
    dims = {name: known.get(name, names.COMPONENT if name == VECTOR else name) for name in shape.names}
    coordinates = {n: c for n, c in like.coords.items() if set(c.dims) <= set(dims.values()) and _same_size(c, shape)}
    labels = shape.only(VECTOR).item_names[0] if VECTOR in dims else None
    if labels:
        coordinates[dims[VECTOR]] = (dims[VECTOR], list(labels))
    text = _grid_of(field, grid)
    ordered = sorted(dims, key=lambda name: [*known, *dims].index(name))
    # PhiML hands out the precision that is set, whatever it holds.
    with math.precision(64 if "64" in str(field.values.dtype) else 32):
        values = field.values.numpy(ordered)
    return xr.DataArray(values, coordinates, [dims[n] for n in ordered], like.name, {names.GRID: text} if text else {})


VECTOR = "vector"


def _kind(dim: str) -> str:
    return VECTOR if names.is_component(dim) else dim


def _same_size(coordinate: xr.DataArray, shape: Any) -> bool:
    return all(shape.get_size(_kind(str(dim))) == size for dim, size in coordinate.sizes.items())


def _grid_of(field: Field, grid: Grid) -> str | None:
    """The grid with the boundary of the field, if that has a word."""
    if field.boundary == grid.phi_boundary:
        return grid_text(grid)
    for word in BOUNDARY_WORDS:
        same = Grid(grid.cells, grid.extent, {axis + end: word for axis in grid.axes for end in "-+"})
        if field.boundary == same.phi_boundary:
            return grid_text(same)
    return None


def _dimension(dim: str, array: xr.DataArray) -> Any:
    """The PhiML dimension that one of xarray stands for."""
    if dim in names.SPACE:
        return math.spatial(dim)
    if names.is_component(dim):
        labels = ",".join(str(v) for v in array[dim].values) if dim in array.coords else None
        return math.channel(vector=labels) if labels else math.channel("vector")
    if dim in array.coords and array[dim].dtype.kind in "OUT":
        return math.batch(**{dim: [str(v) for v in array[dim].values]})
    return math.batch(dim)
