"""Where the fields of a run go: `fields.nc` or, with `output.format: zarr`, `fields.zarr`.

Zarr is an optional package, so what writes stores is imported when the first one is written.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toolkit.physics.grid import Grid
from toolkit.runs import atomic, fields
from toolkit.runs.directory import RunDirectory
from toolkit.runs.fields import FieldWriter
from toolkit.runs.layout import Coordinate, Variable

ZARR = "zarr"


class FrameWriter(Protocol):
    """Fields that grow frame by frame, in whatever format."""

    frames: int
    """Number of frames written."""

    def append(self, at: float, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the next frame, at coordinate value `at`."""
        ...

    def close(self) -> None:
        """Close the file; calling it twice does no harm."""
        ...


def open_frames(
    directory: RunDirectory,
    form: str,
    variables: Sequence[Variable],
    coordinates: Sequence[Coordinate],
    attributes: Mapping[str, Any],
    append_dim: str,
    grid: Grid | None,
) -> FrameWriter:
    """Begin the fields of a run anew, frames along `append_dim`."""
    path = _begun(directory, form)
    return _writer(form)(path, variables, coordinates, attributes, append_dim=append_dim, grid=grid)


def resume_frames(directory: RunDirectory, form: str, frames: int) -> FrameWriter:
    """Go on behind the first `frames` frames."""
    return _writer(form).resume(_path(directory, form), frames)


def write_whole(
    directory: RunDirectory,
    form: str,
    arrays: Sequence[tuple[Variable, np.ndarray]],
    coordinates: Sequence[Coordinate],
    attributes: Mapping[str, Any],
    grid: Grid | None,
) -> None:
    """Write all fields of a run at once."""
    write = _stores().write_store if form == ZARR else fields.write_fields
    write(_begun(directory, form), arrays, coordinates, attributes, grid)


def _path(directory: RunDirectory, form: str) -> Path:
    return directory.fields_store if form == ZARR else directory.fields


def _begun(directory: RunDirectory, form: str) -> Path:
    """Where to write; what is left of an earlier attempt in the other format is removed."""
    atomic.remove_leftovers(directory.path)
    other = directory.fields if form == ZARR else directory.fields_store
    atomic.remove(other)
    return _path(directory, form)


def _writer(form: str) -> Any:
    return _stores().ZarrFieldWriter if form == ZARR else FieldWriter


def _stores() -> Any:
    return importlib.import_module("toolkit.runs.zarr_fields")
