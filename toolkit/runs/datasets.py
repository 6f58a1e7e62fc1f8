"""xarray Datasets to and from NetCDF files that CF 1.11 finds no fault with; Zarr stores are read alike.

What NetCDF or CF cannot hold is encoded on the way out and restored on the way in: complex arrays are split
into `<name>_re` and `<name>_im`, text labels along a dimension become the auxiliary coordinate `<dim>_name`,
and attributes other than text and numbers become JSON text.

What is large is opened as dask arrays: reductions go chunk by chunk, and only what is asked for is read.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toolkit.core.errors import MissingError, StorageError
from toolkit.runs import atomic, names
from toolkit.runs.provenance import Provenance, utc_now
from toolkit.runs.sample_first import sample_first

Attribute = str | int | float

LAZY_BYTES = 2**28
"""Uncompressed size above which the variables of a file are dask arrays."""
CHUNK_BYTES = 2**25
"""Size up to which neighbouring chunks of a file are one chunk in dask."""

Chunks = bool | Mapping[str, int] | None
"""Dask arrays or not: None for those of large files, True and False for all and none, sizes by dimension."""


def clean_attributes(attributes: Mapping[str, Any]) -> dict[str, Attribute]:
    """Attributes as NetCDF takes them: text and numbers stay, all else becomes JSON text."""
    return {str(key): _clean(value) for key, value in attributes.items()}


def _clean(value: Any) -> Attribute:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | float) or (type(value) is int and -(2**63) <= value < 2**63):
        return value
    return json.dumps(value, ensure_ascii=False)


def global_attributes(
    title: str,
    summary: str,
    scenario: str,
    provenance: Provenance,
    references: Sequence[str] = (),
    **more: Any,
) -> dict[str, Attribute]:
    """Global attributes that CF and ACDD ask for; `scenario` is its YAML text, `more` is added as it is."""
    now = utc_now()
    versions = provenance.versions
    tools = [f"{name} {versions[name]}" for name in ("phinverse", "phiflow", "torch", "jax") if name in versions]
    whole = {"python": provenance.python, "platform": provenance.platform, "host": provenance.host}
    whole |= {"git_commit": provenance.git_commit, "command": provenance.command, "versions": versions}
    return clean_attributes(
        {
            "Conventions": names.CONVENTIONS,
            "title": title,
            "summary": summary or title,
            "source": "numerical simulation with " + (", ".join(tools) or "phinverse"),
            "history": f"{now}: {' '.join(provenance.command)}",
            "references": "; ".join(references) or "none",
            "date_created": now,
            "keywords": "differentiable physics, inverse problem, simulation",
            "scenario": scenario,
            "provenance": whole,
            **more,
        }
    )


def write_dataset(path: Path, dataset: xr.Dataset) -> None:
    """Write a Dataset as a whole (temporary name, then renamed)."""
    encoded = _encode(dataset)
    # A coordinate may not have holes, so it must not carry the value that marks them.
    encoding: dict[Hashable, dict[str, Any]] = {name: {"_FillValue": None} for name in encoded.coords}
    try:
        with atomic.replacing(path) as temporary:
            encoded.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=encoding)
    except RuntimeError as error:
        # The NetCDF library reports a full disk this way.
        raise atomic.storage_error("write", path, error) from error


def open_dataset(path: Path, chunks: Chunks = None) -> xr.Dataset:
    """Open a NetCDF file or Zarr store lazily; it must be closed.

    `chunks` None: dask arrays where it holds more than LAZY_BYTES, a few frames or samples per chunk; True: always;
    False: never, complex variables are then read at once; a mapping: always, with these sizes, whole dimensions else.
    """
    return decoded(open_raw(path, decode_times=False, decode_timedelta=False), chunks)


def open_raw(path: Path, **options: Any) -> xr.Dataset:
    """A NetCDF file or Zarr store as xarray opens it with these options."""
    store = path.suffix == ".zarr"
    if not (path.is_dir() if store else path.is_file()):
        raise StorageError(f"no file {path}; the run has not written it (yet)")
    if store and importlib.util.find_spec("zarr") is None:
        raise MissingError(f"{path} is a Zarr store: pip install 'phinverse[zarr]'")
    options |= {"engine": "zarr", "consolidated": True} if store else {"engine": "netcdf4"}
    try:
        return xr.open_dataset(path, **options)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def decoded(dataset: xr.Dataset, chunks: Chunks = None) -> xr.Dataset:
    """A Dataset as users want it, of one as files hold it: labels as indexes, parts of complex numbers joined, dask
    arrays where `chunks` says so. It closes what the other one would."""
    large = dataset.nbytes > LAZY_BYTES
    result = sample_first(_labelled(dataset))
    if chunks is True or (chunks is None and large):
        result = result.chunk(_chunk_sizes(result))
    elif chunks is not None and chunks is not False:
        result = result.chunk(dict(chunks))
    result = _joined(result)
    if result is not dataset:
        # Derived Datasets do not own the file; closing this one must close it.
        result.set_close(dataset.close)
    return result


def grown(shape: Sequence[int], chunk: Sequence[int], itemsize: int, limit: int) -> tuple[int, ...]:
    """The largest multiple of a chunk that is not above `limit` bytes, grown from the last dimension to the first."""
    sizes = [max(1, min(pair)) for pair in zip(shape, chunk, strict=True)]
    for i in reversed(range(len(sizes))):
        room = limit // (math.prod(sizes) * itemsize)
        sizes[i] = max(1, min(shape[i], sizes[i] * max(1, room)))
        if sizes[i] < shape[i]:
            break
    return tuple(sizes)


def stored_chunk(variable: xr.Variable) -> tuple[int, ...]:
    """The shape of a variable's chunks in its file; single values where it has none."""
    found = variable.encoding.get("chunksizes") or variable.encoding.get("chunks")
    return tuple(found) if found and len(found) == variable.ndim else (1,) * variable.ndim


def _chunk_sizes(dataset: xr.Dataset) -> dict[str, int]:
    """By dimension a multiple of the chunks in the file; the largest variable decides."""
    sizes: dict[str, int] = {}
    for array in sorted(dataset.data_vars.values(), key=lambda array: -array.nbytes):
        chunk = grown(array.shape, stored_chunk(array.variable), array.dtype.itemsize, CHUNK_BYTES)
        for dim, size in zip(array.dims, chunk, strict=True):
            sizes.setdefault(str(dim), size)
    return sizes


def _encode(dataset: xr.Dataset) -> xr.Dataset:
    """The Dataset with labels as auxiliary coordinates, complex arrays split and attributes cleaned."""
    result = dataset.copy()
    for dim in [str(d) for d in result.dims if d in result.indexes and result[d].dtype.kind in "OUST"]:
        label = names.label_name(dim)
        attributes = {
            "long_name": f"name of the {dim}",
            "units": "1",
            "coverage_content_type": names.COORDINATE,
        }
        values = result[dim].values.astype(object)
        result = result.drop_vars(dim).assign_coords({label: (dim, values, attributes | result[dim].attrs)})
    for key in [str(k) for k in result.data_vars if np.issubdtype(result[k].dtype, np.complexfloating)]:
        for suffix, part, word in _PARTS:
            array = result[key].copy(data=part(result[key].values))
            array.attrs["long_name"] = f"{word} part of {array.attrs.get('long_name', key)}"
            result[f"{key}{suffix}"] = array
        result = result.drop_vars([key])
    for variable in result.variables.values():
        variable.attrs = clean_attributes(variable.attrs)
    result.attrs = clean_attributes(result.attrs)
    return result


_PARTS = ((names.REAL, np.real, "real"), (names.IMAGINARY, np.imag, "imaginary"))


def _labelled(dataset: xr.Dataset) -> xr.Dataset:
    """Text labels along a dimension as its index."""
    result = dataset
    for dim in [str(d) for d in dataset.dims]:
        label = names.label_name(dim)
        if dim not in result.coords and label in result.variables and result[label].dims == (dim,):
            # By way of objects: Zarr gives texts of variable length.
            values = result[label].values.astype(object).astype(str)
            result = result.drop_vars(label).assign_coords({dim: (dim, values, dataset[label].attrs)})
    return result


def _joined(dataset: xr.Dataset) -> xr.Dataset:
    """The parts of complex variables as one."""
    result = dataset
    for key in [str(k) for k in dataset.data_vars if str(k).endswith(names.REAL)]:
        name = key.removesuffix(names.REAL)
        other = name + names.IMAGINARY
        if other in dataset.data_vars:
            real, imaginary = result[key], result[other]
            kind = np.result_type(real.dtype, imaginary.dtype, np.complex64)
            joined = xr.apply_ufunc(_complex, real, imaginary, dask="parallelized", output_dtypes=[kind])
            joined.attrs = dict(dataset[key].attrs)
            if "long_name" in joined.attrs:  # files of others may lack it
                joined.attrs["long_name"] = joined.attrs["long_name"].removeprefix("real part of ")
            result = result.drop_vars([key, other]).assign({name: joined})
    return result


def _complex(real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    # A sum with 1j * imaginary would turn infinities into NaN.
    joined = np.empty(real.shape, np.result_type(real.dtype, imaginary.dtype, np.complex64))
    joined.real, joined.imag = real, imaginary
    return joined
