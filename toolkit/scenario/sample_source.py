"""Files of samples as netCDF4 shows them, whether they are netCDF files or Zarr stores (folders ending in `.zarr`)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netCDF4

from toolkit.core.errors import MissingError

STORE = ".zarr"


def is_source(path: Path) -> bool:
    """Whether there is a file or store of this name."""
    return path.is_dir() if path.suffix == STORE else path.is_file()


@contextmanager
def open_source(path: Path) -> Iterator[Any]:
    """The dimensions and variables of a file or store; OSError, RuntimeError or ValueError where it cannot be read."""
    if path.suffix == STORE:
        if importlib.util.find_spec("zarr") is None:
            raise MissingError(f"{path} is a Zarr store: pip install 'phinverse[zarr]'")
        yield _Store(path, importlib.import_module("zarr").open_group(path, mode="r"))
    else:
        with netCDF4.Dataset(path) as dataset:
            yield dataset


class _Store:
    """A Zarr group with the names that netCDF4 has for what it holds."""

    def __init__(self, path: Path, group: Any):
        self._path = path
        self.variables = {name: _Variable(name, array) for name, array in group.arrays()}
        sizes = {dim: size for v in self.variables.values() for dim, size in zip(v.dimensions, v.shape, strict=True)}
        self.dimensions = {dim: range(size) for dim, size in sizes.items()}

    def filepath(self) -> str:
        """Where it is."""
        return str(self._path)


class _Variable:
    """A Zarr array with the names of netCDF4; attributes are its own."""

    def __init__(self, name: str, array: Any):
        self.name = name
        self._array = array
        self.dimensions: tuple[str, ...] = tuple(array.metadata.dimension_names or ())
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        return self._array[index]

    def __getattr__(self, name: str) -> Any:
        # Of a copy in the making, the array is not there yet.
        attributes = {} if name == "_array" else self._array.attrs
        if name not in attributes:
            raise AttributeError(name)
        return attributes[name]
