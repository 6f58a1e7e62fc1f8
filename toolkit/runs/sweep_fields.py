"""The fields of a sweep's members side by side, written one piece of one member at a time or read when asked for.

    temperature(rule, seed, sample, t, x, y)      NaN where a member is not done

Put together are the variables that all members have alike: the same dimensions with the same coordinates. Whatever
differs, because an axis changes the grid, the times or the network, is left out and named with its reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK
from xarray.core import indexing

from toolkit.core.errors import StorageError
from toolkit.runs import atomic, datasets, names
from toolkit.runs.datasets import Chunks
from toolkit.runs.directory import RunDirectory
from toolkit.runs.fields import reported
from toolkit.runs.sweep_axes import (
    MISSING,
    Axis,
    axes_of,
    axis_attributes,
    global_attributes,
    header_of,
    is_newest,
    members_of,
    sweep_directory,
)
from toolkit.runs.sweep_common import Common, Shared, listed

LEFT_OUT = "left_out_variables"
"""Attribute: JSON text, why a variable of the members is not there, by its name."""
MAX_BYTES = 2 * 10**9
"""Uncompressed size up to which the fields of all members are written into one file."""
CHUNK_BYTES = 2**22
"""Size up to which frames or samples of a member share a chunk."""
PIECE_BYTES = 2**26
"""What is copied at once."""
AS_STORED = {"mask_and_scale": False, "decode_times": False, "decode_timedelta": False, "decode_coords": False}
"""Values as the files hold them; only characters, which labels are in streams, are joined to words."""


@dataclass(frozen=True)
class _Together:
    """What the members have in common, and where each of them lies."""

    axes: list[Axis]
    files: dict[tuple[int, ...], Path]
    """By position along the axes."""
    variables: dict[str, Shared]
    coordinates: dict[str, xr.Variable]
    attributes: dict[str, Any]
    left_out: dict[str, str]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(len(axis.labels) for axis in self.axes)

    @property
    def nbytes(self) -> int:
        """Size of all variables, uncompressed."""
        each = sum(math.prod(v.shape) * v.dtype.itemsize for v in self.variables.values())
        return math.prod(self.sizes) * each

    def chunk(self, shared: Shared) -> tuple[int, ...]:
        """Chunk of a variable of the combined file: some frames or samples of one member."""
        inner = datasets.grown(shared.shape, (1,) * len(shared.shape), shared.dtype.itemsize, CHUNK_BYTES)
        return (1,) * len(self.axes) + inner

    def raw(self) -> xr.Dataset:
        """The combined Dataset as files hold it, its values read from the members when asked for."""
        dims = tuple(axis.name for axis in self.axes)
        variables: dict[str, Any] = dict(self.coordinates)
        for name, shared in self.variables.items():
            stacked = _Stacked(self.files, name, (*self.sizes, *shared.shape), shared.dtype)
            # As xarray wraps what it opens: values are kept once they were read, and may be assigned.
            cached: Any = indexing.MemoryCachedArray(indexing.LazilyIndexedArray(stacked))
            lazy = indexing.CopyOnWriteArray(cached)
            encoding = {"chunksizes": self.chunk(shared)}
            variables[name] = xr.Variable((*dims, *shared.dims), lazy, dict(shared.attributes), encoding)
        return xr.Dataset(variables, attrs=self.attributes)


def open_fields(directory: RunDirectory, chunks: Chunks = None) -> xr.Dataset:
    """The fields of all members that are done: from `fields.nc` if it is newer than they are, else from their files;
    StorageError if they have none in common."""
    if is_newest(directory, directory.fields):
        return datasets.open_dataset(directory.fields, chunks)
    together = _together(directory)
    if together is None:
        raise StorageError(f"{directory.path}: no member of this sweep is done and has fields")
    if not together.variables:
        raise StorageError(f"{directory.path}: {_nothing(together)}")
    return datasets.decoded(together.raw(), chunks)


def write_fields(path: str | Path, say: Callable[[str], None]) -> Path | None:
    """Write `fields.nc` above the members of a sweep; None where they have nothing in common, or more than MAX_BYTES.
    What is left out is said."""
    directory = sweep_directory(path)
    if is_newest(directory, directory.fields):
        return directory.fields
    together = _together(directory)
    try:
        # One of an earlier state of the sweep would mislead whoever opens it.
        directory.fields.unlink(missing_ok=True)
    except OSError as error:
        raise atomic.storage_error("replace", directory.fields, error) from error
    if together is None:
        return None
    if not together.variables:
        say(_nothing(together))
        return None
    if together.left_out:
        say(f"left out of {directory.fields.name} of the sweep: {listed(together.left_out)}")
    if together.nbytes > MAX_BYTES:
        say(
            f"the fields of all members take {together.nbytes / 1e9:.1f} GB, more than the {MAX_BYTES / 1e9:g} GB of "
            f"one file; toolkit.open_sweep({str(path)!r}, 'fields') reads them from the members"
        )
        return None
    if together.nbytes > datasets.LAZY_BYTES:
        say(f"putting the fields of {len(together.files)} members together: {together.nbytes / 1e9:.1f} GB")
    with atomic.replacing(directory.fields) as temporary:
        # Without data variables: the coordinates and attributes of the file.
        datasets.write_dataset(temporary, datasets.decoded(together.raw()[list(together.coordinates)]))
        with reported("write", directory.fields), netCDF4.Dataset(temporary, "a") as file:
            for name, shared in together.variables.items():
                _copy(file, name, shared, together)
    return directory.fields


def _nothing(together: _Together) -> str:
    return f"the members have no field in common: {listed(together.left_out)}"


def _together(directory: RunDirectory) -> _Together | None:
    """Compare the files of all members, one open at a time; None if there are none."""
    found = members_of(directory, lambda member: member.stored_fields is not None, "fields")
    files = {cell: path for cell, member in found.present.items() if (path := member.stored_fields)}
    common: Common | None = None
    for cell, file in files.items():
        with datasets.open_raw(file, **AS_STORED) as raw:
            if common is None:
                common = Common(cell, raw)
            else:
                common.compare(cell, raw)
    if common is None:
        return None
    axes = axes_of(found.cells.values(), common.names)
    header = header_of(directory)
    coordinates = {
        axis.name: xr.Variable((axis.name,), np.array(axis.labels), axis_attributes(axis, header)) for axis in axes
    }
    needed = {dim for shared in common.variables.values() for dim in shared.dims}
    coordinates |= {name: v for name, v in common.coordinates.items() if v.dims[0] in needed}
    at = {tuple(axis.index[found.cells[cell][axis.key]] for axis in axes): file for cell, file in files.items()}
    attributes = global_attributes(directory, **{MISSING: found.missing, LEFT_OUT: common.left_out})
    return _Together(axes, at, common.variables, coordinates, attributes, common.left_out)


def _copy(file: netCDF4.Dataset, name: str, shared: Shared, together: _Together) -> None:
    """Write a variable member by member; what is missing takes no space."""
    dims = (*(axis.name for axis in together.axes), *shared.dims)
    for dim, size in zip(dims, (*together.sizes, *shared.shape), strict=True):
        if dim not in file.dimensions:
            file.createDimension(dim, size)
    chunk = together.chunk(shared)
    created = file.createVariable(
        name, shared.dtype, dims, zlib=True, complevel=1, shuffle=True, fill_value=math.nan, chunksizes=chunk
    )
    labels = [names.label_name(dim) for dim in dims if names.label_name(dim) in file.variables]
    created.setncatts({**shared.attributes, **({"coordinates": " ".join(labels)} if labels else {})})
    # Chunks are written once and as a whole; what netCDF would keep of each variable is 64 MB.
    created.set_var_chunk_cache(size=2 * CHUNK_BYTES)
    inner = chunk[len(together.axes) :]
    step = datasets.grown(shared.shape, inner, shared.dtype.itemsize, PIECE_BYTES)
    for place, path in together.files.items():
        for piece in _pieces(shared.shape, step):
            created[(*place, *piece)] = read_part(path, name, piece)


def _pieces(shape: Sequence[int], step: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Slices that cover an array."""
    ranges = [range(0, size, width) for size, width in zip(shape, step, strict=True)]
    for starts in itertools.product(*ranges):
        yield tuple(slice(s, min(s + w, n)) for s, w, n in zip(starts, step, shape, strict=True))


def read_part(path: Path, name: str, key: tuple[Any, ...]) -> np.ndarray:
    """A part of one variable of a field file, open only meanwhile; indices are taken dimension by dimension."""
    if path.is_dir():
        with datasets.open_raw(path, decode_cf=False) as raw:
            return raw.variables[name][key].values
    # Dask reads in threads, the NetCDF library cannot: this is the lock that xarray reads its files under.
    with reported("read", path), NETCDF4_PYTHON_LOCK, netCDF4.Dataset(path) as file:
        variable = file.variables[name]
        variable.set_auto_maskandscale(False)
        return np.asarray(variable[key or ...])


class _Stacked(BackendArray):
    """A variable of all members as one array, read from their files when it is indexed."""

    def __init__(self, files: Mapping[tuple[int, ...], Path], name: str, shape: tuple[int, ...], dtype: np.dtype):
        self._files, self._name, self.shape, self.dtype = files, name, shape, dtype
        self._axes = len(next(iter(files)))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        chosen = [np.arange(size)[k] for size, k in zip(self.shape, key, strict=True)]
        result = np.full(
            [c.size for c in chosen[: self._axes]] + [n for c in chosen[self._axes :] for n in c.shape], np.nan
        )
        result = result.astype(self.dtype)
        for place in np.ndindex(*result.shape[: self._axes]):
            member = tuple(int(np.atleast_1d(c)[i]) for c, i in zip(chosen[: self._axes], place, strict=True))
            if member in self._files:
                result[place] = read_part(self._files[member], self._name, key[self._axes :])
        # A single index takes its dimension away.
        return result.reshape([n for c in chosen for n in c.shape])
