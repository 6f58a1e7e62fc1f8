"""From a labelled array back to a PhiFlow field.

Files keep the grid of each variable as JSON text in its attribute `grid`, so that

    to_phiflow(run.fields.temperature)

is the cell-centred field on the same box with the same boundary, ready for PhiFlow's operators.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr
from phi.field import Field
from phiml import math

from toolkit.core.errors import StorageError
from toolkit.physics.grid import Grid
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
    other dimension (`sample`, `t`, …) becomes a batch dimension.
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


def _dimension(dim: str, array: xr.DataArray) -> Any:
    """The PhiML dimension that one of xarray stands for."""
    if dim in names.SPACE:
        return math.spatial(dim)
    if names.is_component(dim):
        labels = ",".join(str(v) for v in array[dim].values) if dim in array.coords else None
        return math.channel(vector=labels) if labels else math.channel("vector")
    return math.batch(dim)
