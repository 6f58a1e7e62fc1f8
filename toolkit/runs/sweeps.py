"""A sweep as one Dataset: its axes are dimensions, beside those that a member has.

train_loss(xi, rule, step)                  metrics; NaN where a member has not recorded that step, or is not done
temperature(xi, rule, sample, t, x, y)      fields; NaN where a member is not done
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from toolkit.core.errors import ScenarioError, StorageError
from toolkit.runs import datasets, names, sweep_fields
from toolkit.runs.datasets import Chunks
from toolkit.runs.directory import RunDirectory
from toolkit.runs.open import StoredRun
from toolkit.runs.sweep_axes import (
    COMPILE_SECONDS,
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


def open_sweep(path: str | Path, what: Literal["metrics", "fields"] = "metrics", chunks: Chunks = None) -> xr.Dataset:
    """The metrics of all members along the axes of a sweep and `step`: `ds.train_loss.sel(rule="sip", seed=0)`; or
    their fields: `open_sweep(path, "fields").temperature.sel(rule="sip", seed=0)`.

    Of a sweep that has not ended, what its finished members have; ScenarioError if the folder is not that of a sweep.
    Large fields are dask arrays, metrics only if `chunks` says so (see `open_run`); fields that no file holds together
    are read from the members when they are asked for.
    """
    if what not in ("metrics", "fields"):
        raise ScenarioError(f"open_sweep: what is {what!r}; expected 'metrics' or 'fields'")
    directory = sweep_directory(path)
    if what == "fields":
        return sweep_fields.open_fields(directory, chunks)
    if up_to_date(directory):
        # A median over seeds needs them in one chunk.
        return datasets.open_dataset(directory.metrics, False if chunks is None else chunks)
    return combine(directory.path)


def write_sweep(path: str | Path) -> Path | None:
    """Write `metrics.nc` above the members of a sweep; None if no member has any metrics."""
    directory = sweep_directory(path)
    dataset = _combined(directory)
    if dataset is None:
        return None
    datasets.write_dataset(directory.metrics, dataset)
    return directory.metrics


def combine(path: str | Path) -> xr.Dataset:
    """The metrics of all members that are done, read from their files; StorageError if there are none."""
    dataset = _combined(sweep_directory(path))
    if dataset is None:
        raise StorageError(f"{path}: no member of this sweep is done and has metrics")
    return dataset


def up_to_date(directory: RunDirectory) -> bool:
    """Whether `metrics.nc`, the last to be written, is newer than everything that happened to the members."""
    return is_newest(directory, directory.metrics)


def _combined(directory: RunDirectory) -> xr.Dataset | None:
    found = members_of(directory, lambda member: member.metrics.is_file(), "metrics")
    members: dict[str, xr.Dataset] = {}
    for cell, member in found.present.items():
        with StoredRun(member.path) as stored:
            members[cell] = stored.metrics.load()
    if not members:
        return None
    axes = axes_of(found.cells.values(), {str(v) for member in members.values() for v in member.variables})
    header = header_of(directory)
    dataset = joined(axes, found.cells, members)
    for axis in axes:
        dataset[axis.name].attrs = axis_attributes(axis, header)
    dataset.attrs = global_attributes(directory, **{MISSING: found.missing})
    return dataset


def joined(axes: list[Axis], cells: Mapping[str, Mapping[str, Any]], members: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The metrics of the members side by side, with every step that any of them has."""
    steps = np.unique(np.concatenate([member[names.STEP].values for member in members.values()]))
    shape = tuple(len(axis.labels) for axis in axes)
    dims = tuple(axis.name for axis in axes)
    first = {name: member[name] for member in reversed(list(members.values())) for name in member.data_vars}
    order = [*names.METRICS, *sorted(str(name) for name in first if name not in names.METRICS)]
    values = {name: np.full((*shape, len(steps)), np.nan) for name in order if name in first}
    compiled = np.full(shape, np.nan)
    for cell, member in members.items():
        place = tuple(axis.index[cells[cell][axis.key]] for axis in axes)
        rows = np.searchsorted(steps, member[names.STEP].values)
        for name, variable in member.data_vars.items():
            values[str(name)][(*place, rows)] = variable.values
        compiled[place] = member.attrs.get(COMPILE_SECONDS, np.nan)
    variables: dict[str, Any] = {
        name: ((*dims, names.STEP), array, dict(first[name].attrs), {"zlib": True, "complevel": 1})
        for name, array in values.items()
    }
    about = {"long_name": "time spent compiling and tracing", "units": "s"}
    variables[COMPILE_SECONDS] = (dims, compiled, {**about, "coverage_content_type": names.QUALITY})
    coordinates = {axis.name: (axis.name, np.array(axis.labels)) for axis in axes}
    step = (names.STEP, steps, dict(next(iter(members.values()))[names.STEP].attrs))
    return xr.Dataset(variables, {**coordinates, names.STEP: step})
