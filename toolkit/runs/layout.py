"""What a field file consists of: its coordinates, its variables and how they lie on the disk.

One frame of one variable is one chunk, so that frames are written and read alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import netCDF4
import numpy as np

from toolkit.physics.grid import Grid
from toolkit.runs import names
from toolkit.runs.datasets import clean_attributes
from toolkit.runs.phiflow_fields import grid_text

MAX_CHUNK = 2**28
"""Bytes. HDF5 refuses chunks of 4 GiB, and a reader holds whole chunks in memory."""


@dataclass(frozen=True)
class Coordinate:
    """Values along one dimension; text values become labels."""

    name: str
    values: np.ndarray
    long_name: str
    units: str = "1"

    @property
    def is_text(self) -> bool:
        """Whether the values are labels."""
        return self.values.dtype.kind in "OU"

    @property
    def variable(self) -> str:
        """Name of the variable that holds the values."""
        return names.label_name(self.name) if self.is_text else self.name

    @property
    def attributes(self) -> dict[str, str]:
        """What the file says about it."""
        about = {"long_name": self.long_name, "units": self.units}
        return about | {"coverage_content_type": names.COORDINATE}


@dataclass(frozen=True)
class Variable:
    """One array of the file; its sizes are those of the coordinates."""

    name: str
    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    dtype: str = "float64"
    """A NumPy name; complex64 and complex128 are split into two real variables."""
    role: str = ""
    """One of `names.ROLES`, or empty where there is no inverse problem."""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role and self.role not in names.ROLES:
            raise ValueError(f"role of {self.name} must be one of {names.ROLES}, not {self.role!r}")


def spatial_coordinates(grid: Grid, units: str = "1") -> list[Coordinate]:
    """Cell centres along each axis of a grid."""
    return [Coordinate(a, grid.coordinates(a), f"{a} of the cell centre", units) for a in grid.axes]


def sample_coordinate(count: int) -> Coordinate:
    """Samples, numbered from 0."""
    return Coordinate(names.SAMPLE, np.arange(count, dtype=np.int64), names.LONG_NAMES[names.SAMPLE])


def time_coordinate(values: Sequence[float] | np.ndarray = (), units: str = "1") -> Coordinate:
    """Simulation times; give none where they are appended frame by frame."""
    return Coordinate(names.TIME, np.asarray(values, dtype=np.float64), names.LONG_NAMES[names.TIME], units)


def step_coordinate(values: Sequence[int] | np.ndarray = ()) -> Coordinate:
    """Numbers of updates done; give none where they are appended frame by frame."""
    return Coordinate(names.STEP, np.asarray(values, dtype=np.int64), names.LONG_NAMES[names.STEP])


def component_coordinate(labels: Sequence[str], dim: str = names.COMPONENT) -> Coordinate:
    """Names of the components of a vector."""
    return Coordinate(dim, np.asarray(list(labels), dtype=str), names.LONG_NAMES[names.COMPONENT])


def check_appendable(coordinates: Sequence[Coordinate], append_dim: str | None) -> None:
    """ValueError unless the dimension that frames are appended along has a coordinate."""
    if append_dim is not None and append_dim not in [c.name for c in coordinates]:
        raise ValueError(f"no coordinate is given for {append_dim!r}, along which frames are appended")


def define_coordinates(dataset: netCDF4.Dataset, coordinates: Sequence[Coordinate], append_dim: str | None) -> None:
    """Create dimensions and their coordinates, with values but for the one that is appended to."""
    check_appendable(coordinates, append_dim)
    for coordinate in coordinates:
        appended = coordinate.name == append_dim
        dataset.createDimension(coordinate.name, None if appended else len(coordinate.values))
        text = coordinate.is_text
        name = coordinate.variable
        if text and dataset.data_model != "NETCDF4":
            _define_text(dataset, coordinate)
            continue
        kind = str if text else coordinate.values.dtype
        chunks = (1024,) if appended else None
        # fill_value=False: coordinates have no holes, so none of their values means one.
        variable = dataset.createVariable(name, kind, (coordinate.name,), fill_value=False, chunksizes=chunks)
        variable.setncatts(coordinate.attributes)
        if not appended:
            variable[:] = coordinate.values.astype(object) if text else coordinate.values


def _define_text(dataset: netCDF4.Dataset, coordinate: Coordinate) -> None:
    """Labels as characters: the classic format has no strings."""
    name, labels = coordinate.variable, [str(value).encode() for value in coordinate.values]
    width = max(map(len, labels), default=1)
    dataset.createDimension(f"{name}_length", width)
    variable = dataset.createVariable(name, "S1", (coordinate.name, f"{name}_length"), fill_value=False)
    variable.setncatts(coordinate.attributes | {"_Encoding": "utf-8"})
    variable.set_auto_chartostring(False)
    variable[:] = np.array(labels, dtype=f"S{width}").view("S1").reshape(len(labels), width)


def define_variable(
    dataset: netCDF4.Dataset, variable: Variable, append_dim: str | None, grid: Grid | None, together: int = 1
) -> None:
    """Create a variable without values; a complex one becomes two. `together` frames are written at a time."""
    check_dimensions(variable, dataset.dimensions)
    attributes = attributes_of(variable, set(dataset.variables), grid)
    for part in parts_of(variable):
        shape = [together if d == append_dim else max(1, len(dataset.dimensions[d])) for d in variable.dims]
        created = dataset.createVariable(
            part.name,
            part.dtype,
            variable.dims,
            fill_value=math.nan if part.dtype.kind == "f" else None,
            chunksizes=_chunks(shape, part.dtype.itemsize),
        )
        created.setncatts({"long_name": part.long_name, **attributes})


def check_dimensions(variable: Variable, known: Collection[str]) -> None:
    """ValueError unless all dimensions of a variable are known."""
    missing = [dim for dim in variable.dims if dim not in known]
    if missing:
        raise ValueError(f"{variable.name} lies along {missing}, for which no coordinate is given")


@dataclass(frozen=True)
class Part:
    """A real array of the file."""

    name: str
    long_name: str
    dtype: np.dtype


def parts_of(variable: Variable) -> list[Part]:
    """The variable itself, or the two parts of a complex one."""
    dtype = np.dtype(variable.dtype)
    if dtype.kind != "c":
        return [Part(variable.name, variable.long_name, dtype)]
    real = np.real(np.zeros(0, dtype)).dtype
    words = {names.REAL: "real", names.IMAGINARY: "imaginary"}
    return [Part(variable.name + s, f"{word} part of {variable.long_name}", real) for s, word in words.items()]


def attributes_of(variable: Variable, known: Collection[str], grid: Grid | None) -> dict[str, Any]:
    """Attributes of a variable but for `long_name`, in a file that holds `known` variables."""
    attributes: dict[str, Any] = {"units": variable.units, "coverage_content_type": names.RESULT}
    if grid is not None and any(dim in names.SPACE for dim in variable.dims):
        attributes[names.GRID] = grid_text(grid)
    if variable.role:
        attributes[names.ROLE] = variable.role
    labels = [names.label_name(dim) for dim in variable.dims if names.label_name(dim) in known]
    if labels:
        attributes["coordinates"] = " ".join(labels)
    return attributes | clean_attributes(variable.attributes)


def _chunks(frame: Sequence[int], itemsize: int) -> list[int] | None:
    """Chunk sizes of a variable: one frame, its first dimensions halved until it fits into MAX_CHUNK."""
    chunks = list(frame)
    while math.prod(chunks) * itemsize > MAX_CHUNK:
        largest = next(i for i, size in enumerate(chunks) if size > 1)
        chunks[largest] = math.ceil(chunks[largest] / 2)
    return chunks or None
