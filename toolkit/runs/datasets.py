"""xarray Datasets to and from NetCDF files that CF 1.11 finds no fault with.

What NetCDF or CF cannot hold is encoded on the way out and restored on the way in: complex arrays are split
into `<name>_re` and `<name>_im`, text labels along a dimension become the auxiliary coordinate `<dim>_name`,
and attributes other than text and numbers become JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toolkit.core.errors import StorageError
from toolkit.runs import atomic, names
from toolkit.runs.provenance import Provenance, utc_now

Attribute = str | int | float


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


def open_dataset(path: Path) -> xr.Dataset:
    """Open a NetCDF file lazily (complex variables are read at once); it must be closed."""
    if not path.is_file():
        raise StorageError(f"no file {path}; the run has not written it (yet)")
    try:
        dataset = xr.open_dataset(path, engine="netcdf4", decode_times=False, decode_timedelta=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(
            f"cannot read {path}: {error}; if the run is still going, its file is locked until the run ends"
        ) from error
    return _decode(dataset)


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


def _decode(dataset: xr.Dataset) -> xr.Dataset:
    """The inverse of `_encode`, cleaned attributes apart."""
    result = dataset
    for dim in [str(d) for d in dataset.dims]:
        label = names.label_name(dim)
        if dim not in result.coords and label in result.variables and result[label].dims == (dim,):
            values = result[label].values.astype(str)
            result = result.drop_vars(label).assign_coords({dim: (dim, values, dataset[label].attrs)})
    for key in [str(k) for k in dataset.data_vars if str(k).endswith(names.REAL)]:
        name = key.removesuffix(names.REAL)
        other = name + names.IMAGINARY
        if other in dataset.data_vars:
            joined = result[key] + 1j * result[other]
            joined.attrs = dict(dataset[key].attrs)
            if "long_name" in joined.attrs:  # files of others may lack it
                joined.attrs["long_name"] = joined.attrs["long_name"].removeprefix("real part of ")
            result = result.drop_vars([key, other]).assign({name: joined})
    if result is not dataset:
        # Derived Datasets do not own the file; closing this one must close it.
        result.set_close(dataset.close)
    return result
