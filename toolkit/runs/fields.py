"""Fields to `fields.nc`, as a whole or frame by frame.

A stream writes its frames along one unlimited dimension (`t` of a simulation, `step` of an optimisation) and
hands each to the operating system before the next is computed: memory does not grow, and a killed process
leaves a file that holds every frame written. The file appears under its name once its header is complete.

Whole files are NetCDF-4. Streams are CDF-5, the classic format for large data, whose unlimited dimension comes first:
there a frame is bytes at the end of the file, and counts once a single number in the header says so. A process that is
killed while HDF5, which NetCDF-4 files are, rearranges its index leaves a file that nobody can open.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import netCDF4
import numpy as np

from toolkit.core.errors import StorageError
from toolkit.physics.grid import Grid
from toolkit.runs import atomic, names
from toolkit.runs.datasets import clean_attributes
from toolkit.runs.layout import Coordinate, Variable, define_coordinates, define_variable

WHOLE, STREAM = "NETCDF4", "NETCDF3_64BIT_DATA"
"""Formats, in the words of the netCDF4 library."""
CACHE = 2**20
"""Bytes of the chunk cache of each variable: chunks are written once and as a whole."""
COPIED = 2**24
"""Bytes that are copied at a time, about."""


class FieldWriter:
    """Writes a field file: `write` for whole variables, `append` for frames along `append_dim`."""

    def __init__(
        self,
        path: Path,
        variables: Sequence[Variable],
        coordinates: Sequence[Coordinate],
        attributes: Mapping[str, Any],
        append_dim: str | None = None,
        grid: Grid | None = None,
    ):
        if append_dim is not None and append_dim not in names.APPENDABLE:
            raise ValueError(f"frames are appended along one of {names.APPENDABLE}, not {append_dim!r}")
        with (
            atomic.replacing(path) as temporary,
            reported("write", path),
            written(temporary, WHOLE if append_dim is None else STREAM) as dataset,
        ):
            dataset.setncatts(clean_attributes(attributes))
            define_coordinates(dataset, coordinates, append_dim)
            for variable in variables:
                define_variable(dataset, _leading(variable, append_dim), append_dim, grid)
        self._open(path, 0)

    @classmethod
    def resume(cls, path: Path, frames: int) -> FieldWriter:
        """Go on with a stream behind its first `frames` frames; later ones are dropped and written anew."""
        with reported("read", path), netCDF4.Dataset(path, "r") as dataset:
            dim = _unlimited(dataset)
            available = 0 if dim is None else len(dataset.dimensions[dim])
        if dim is None or available < frames:
            raise StorageError(f"{path} holds {available} frames, the checkpoint counts {frames}; start the run again")
        if available > frames:
            # An unlimited dimension cannot shrink.
            with atomic.replacing(path) as temporary, reported("write", path):
                _copy_frames(path, temporary, dim, frames)
        writer = cls.__new__(cls)
        writer._open(path, frames)
        return writer

    def _open(self, path: Path, frames: int) -> None:
        self._path, self._closed = path, False
        self.frames = frames
        """Number of frames written."""
        with reported("write", path):
            self._dataset = netCDF4.Dataset(path, "a")
        self._dataset.set_auto_mask(False)
        self._append_dim = _unlimited(self._dataset)
        if self._append_dim is not None:
            # Every value of a frame is written; filling it before would write all of it twice.
            self._dataset.set_fill_off()
            return
        for variable in self._dataset.variables.values():
            variable.set_var_chunk_cache(size=CACHE)

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write whole variables by name; shapes as declared."""
        with reported("write", self._path):
            for name, values in real_arrays(arrays).items():
                variable = self._variable(name)
                if self._append_dim in variable.dimensions:
                    raise ValueError(f"{name} lies along {self._append_dim}; write it with `append`")
                check_shape(name, values, variable.shape)
                variable[...] = values
            self._dataset.sync()

    def append(self, at: float, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the next frame of every variable along the append dimension, at coordinate value `at`."""
        dim = self._append_dim
        if dim is None:
            raise ValueError(f"{self._path} was opened without a dimension to append along")
        real = real_arrays(arrays)
        streamed = {n for n, v in self._dataset.variables.items() if dim in v.dimensions and n != dim}
        if set(real) != streamed:
            raise ValueError(f"a frame holds {sorted(real)}, the file expects {sorted(streamed)}")
        with reported("write", self._path):
            for name, values in real.items():
                variable = self._variable(name)
                # A frame has the other dimensions as they were declared; the unlimited one lies first in the file.
                check_shape(name, values, variable.shape[1:])
                variable[self.frames] = values
            # Last, so that a frame that has its coordinate is there in all variables.
            self._dataset.variables[dim][self.frames] = at
            self._dataset.sync()
        self.frames += 1

    def close(self) -> None:
        """Close the file; calling it twice does no harm."""
        if not self._closed:
            self._closed = True
            with reported("write", self._path):
                close_written(self._dataset)

    def __enter__(self) -> FieldWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _variable(self, name: str) -> Any:
        if name not in self._dataset.variables:
            known = ", ".join(self._dataset.variables)
            raise ValueError(f"no variable {name!r} in {self._path}; declared: {known}")
        return self._dataset.variables[name]


def write_fields(
    path: Path,
    arrays: Sequence[tuple[Variable, np.ndarray]],
    coordinates: Sequence[Coordinate],
    attributes: Mapping[str, Any],
    grid: Grid | None = None,
) -> None:
    """Write a complete field file as a whole (temporary name, then renamed)."""
    with atomic.replacing(path) as temporary:
        variables = [variable for variable, _ in arrays]
        with FieldWriter(temporary, variables, coordinates, attributes, grid=grid) as writer:
            writer.write({variable.name: values for variable, values in arrays})


@contextmanager
def reported(doing: str, path: Path) -> Iterator[None]:
    """Failures of the NetCDF library, which raises RuntimeError for a full disk, as StorageError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise atomic.storage_error(doing, path, error) from error


@contextmanager
def written(path: Path, form: Any) -> Iterator[netCDF4.Dataset]:
    """A new file, closed when the block ends."""
    dataset = netCDF4.Dataset(path, "w", format=form)
    try:
        yield dataset
    except BaseException:
        # What went wrong first is what matters.
        with suppress(OSError, RuntimeError):
            close_written(dataset)
        raise
    close_written(dataset)


def close_written(dataset: netCDF4.Dataset) -> None:
    """Close a file that was written to; RuntimeError or OSError if the disk does not take the rest."""
    try:
        dataset.close()
    except (OSError, RuntimeError):
        # The library has freed the file all the same, and would do so again when Python frees the object: a crash. It
        # is therefore never freed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(dataset))
        raise


def _leading(variable: Variable, dim: str | None) -> Variable:
    """The variable with this dimension first, where it has it."""
    if dim is None or dim not in variable.dims:
        return variable
    return replace(variable, dims=(dim, *(other for other in variable.dims if other != dim)))


def check_shape(name: str, values: np.ndarray, shape: Sequence[int]) -> None:
    """ValueError unless an array has this shape."""
    # NetCDF would broadcast or cut silently.
    if tuple(values.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(values.shape)}, the file expects {tuple(shape)}")


def real_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with complex ones split into their parts."""
    result = {}
    for name, values in arrays.items():
        array = np.asarray(values)
        if np.iscomplexobj(array):
            result |= {name + names.REAL: np.real(array), name + names.IMAGINARY: np.imag(array)}
        else:
            result[name] = array
    return result


def _unlimited(dataset: netCDF4.Dataset) -> str | None:
    return next((name for name, dim in dataset.dimensions.items() if dim.isunlimited()), None)


def _copy_frames(source: Path, target: Path, dim: str, frames: int) -> None:
    """Copy a stream with its first `frames` frames only, some at a time."""
    with netCDF4.Dataset(source, "r") as old, written(target, STREAM) as new:
        old.set_auto_maskandscale(False)
        old.set_auto_chartostring(False)
        new.setncatts({name: old.getncattr(name) for name in old.ncattrs()})
        for name, dimension in old.dimensions.items():
            new.createDimension(name, None if name == dim else len(dimension))
        for name, variable in old.variables.items():
            about = {key: variable.getncattr(key) for key in variable.ncattrs()}
            fill = about.pop("_FillValue", False)
            copy = new.createVariable(name, variable.dtype, variable.dimensions, fill_value=fill)
            copy.setncatts(about)
            copy.set_auto_chartostring(False)
        new.set_fill_off()
        for name, variable in old.variables.items():
            if dim not in variable.dimensions:
                new.variables[name][...] = variable[...]
                continue
            frame = variable.dtype.itemsize * max(1, math.prod(variable.shape[1:]))
            block = max(1, COPIED // frame)
            for start in range(0, frames, block):
                stop = min(start + block, frames)
                new.variables[name][start:stop] = variable[start:stop]
