"""Fields to `fields.nc`, as a whole or frame by frame.

A stream writes its frames along one unlimited dimension (`t` of a simulation, `step` of an optimisation) and
hands each to the operating system before the next is computed: memory does not grow, and a killed process
leaves a file that holds every frame written. The file appears under its name once its header is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
            netCDF4.Dataset(temporary, "w", format="NETCDF4") as dataset,
        ):
            dataset.setncatts(clean_attributes(attributes))
            define_coordinates(dataset, coordinates, append_dim)
            for variable in variables:
                define_variable(dataset, variable, append_dim, grid)
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
        self._path = path
        self.frames = frames
        """Number of frames written."""
        with reported("write", path):
            self._dataset = netCDF4.Dataset(path, "a")
        self._dataset.set_auto_mask(False)
        self._append_dim = _unlimited(self._dataset)

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write whole variables by name; shapes as declared."""
        with reported("write", self._path):
            for name, values in real_arrays(arrays).items():
                variable = self._variable(name)
                if self._append_dim in variable.dimensions:
                    raise ValueError(f"{name} lies along {self._append_dim}; write it with `append`")
                _check_shape(name, values, variable.shape)
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
                axis = variable.dimensions.index(dim)
                shape = [size for i, size in enumerate(variable.shape) if i != axis]
                _check_shape(name, values, shape)
                variable[(slice(None),) * axis + (self.frames,)] = values
            # Last, so that a frame that has its coordinate is there in all variables.
            self._dataset.variables[dim][self.frames] = at
            self._dataset.sync()
        self.frames += 1

    def close(self) -> None:
        """Close the file; calling it twice does no harm."""
        if self._dataset.isopen():
            with reported("write", self._path):
                self._dataset.close()

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


def _check_shape(name: str, values: np.ndarray, shape: Sequence[int]) -> None:
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
    """Copy a stream with its first `frames` frames only, one at a time."""
    with netCDF4.Dataset(source, "r") as old, netCDF4.Dataset(target, "w", format="NETCDF4") as new:
        old.set_auto_mask(False)
        new.setncatts({name: old.getncattr(name) for name in old.ncattrs()})
        for name, dimension in old.dimensions.items():
            new.createDimension(name, None if name == dim else len(dimension))
        for name, variable in old.variables.items():
            about = {key: variable.getncattr(key) for key in variable.ncattrs()}
            fill = about.pop("_FillValue", False)
            chunks = variable.chunking()
            copy = new.createVariable(
                name,
                variable.dtype,
                variable.dimensions,
                fill_value=fill,
                chunksizes=None if chunks == "contiguous" else chunks,
            )
            copy.setncatts(about)
            if dim not in variable.dimensions:
                copy[...] = variable[...]
                continue
            axis = variable.dimensions.index(dim)
            for frame in range(frames):
                index = (slice(None),) * axis + (frame,)
                copy[index] = variable[index]
