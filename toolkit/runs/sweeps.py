"""The metrics of a sweep as one Dataset: its axes are dimensions, beside the steps of the training.

    train_loss(xi, rule, step)      NaN where a member has not recorded that step, or is not done

Axes have the last word of their key as their name (`pde.xi` is `xi`). Numbers are numeric coordinates in ascending
order; labels of variants are text, stored as CF wants it and turned into an index by `open_sweep`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toolkit.core.errors import MissingError, ScenarioError, StorageError
from toolkit.core.options import Options
from toolkit.runs import atomic, datasets, names, record
from toolkit.runs.directory import RECORD_FILE, RunDirectory
from toolkit.runs.open import StoredRun
from toolkit.runs.provenance import collect
from toolkit.scenario import kinds
from toolkit.scenario.expressions import evaluate
from toolkit.scenario.resolve import PLAIN
from toolkit.scenario.sweep import short_names
from toolkit.scenario.yaml_loader import read_text

COMPILE_SECONDS = "compile_seconds"
MISSING = "missing_members"
"""Attribute: JSON text, why a member has no values, by its name."""
KEY = "scenario_key"
"""Attribute of an axis: the key of the scenario, or the name of the variants."""

_CF_UNITS = re.compile(r"(?:(?:kg|m|s|K|kelvin|degrees?|radians?|Pa|J|N|W|Hz)(?:-?[0-9])?(?: |$))+")
Label = str | int | float


@dataclass(frozen=True)
class Axis:
    """One axis of a sweep."""

    key: str
    name: str
    """The dimension."""
    labels: tuple[Label, ...]
    """Its coordinate: all numbers, ascending, or all text in the order of the scenario."""
    index: Mapping[Any, int]
    """Position along the dimension by label as `sweep.json` has it."""


def open_sweep(path: str | Path) -> xr.Dataset:
    """The metrics of all members along the axes of a sweep and `step`: `ds.train_loss.sel(rule="sip", seed=0)`.

    Of a sweep that has not ended, what its finished members have; ScenarioError if the folder is not that of a sweep.
    """
    directory = _sweep_directory(path)
    if up_to_date(directory):
        return datasets.open_dataset(directory.metrics)
    return combine(directory.path)


def write_sweep(path: str | Path) -> Path | None:
    """Write `metrics.nc` above the members of a sweep; None if no member has any metrics."""
    directory = _sweep_directory(path)
    dataset = _combined(directory)
    if dataset is None:
        return None
    datasets.write_dataset(directory.metrics, dataset)
    return directory.metrics


def combine(path: str | Path) -> xr.Dataset:
    """The metrics of all members that are done, read from their files; StorageError if there are none."""
    dataset = _combined(_sweep_directory(path))
    if dataset is None:
        raise StorageError(f"{path}: no member of this sweep is done and has metrics")
    return dataset


def _sweep_directory(path: str | Path) -> RunDirectory:
    directory = RunDirectory(Path(path))
    if not directory.sweep.is_file():
        hint = "; open a run with open_run" if directory.record.is_file() else ""
        raise ScenarioError(f"{path} is not the directory of a sweep: it holds no {directory.sweep.name}{hint}")
    return directory


def _cells(directory: RunDirectory) -> dict[str, dict[str, Any]]:
    """Labels by axis, by member."""
    content = atomic.read_json(directory.sweep)
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, dict) or not cells or not all(isinstance(labels, dict) for labels in cells.values()):
        raise StorageError(f"{directory.sweep} does not list the members of the sweep; restore the file")
    return cells


def up_to_date(directory: RunDirectory) -> bool:
    """Whether `metrics.nc` was written after everything that happened to the members."""
    if not directory.metrics.is_file():
        return False
    written = directory.metrics.stat().st_mtime_ns
    records = [directory.path / cell / RECORD_FILE for cell in _cells(directory)]
    return all(path.stat().st_mtime_ns <= written for path in records if path.is_file())


def _combined(directory: RunDirectory) -> xr.Dataset | None:
    cells = _cells(directory)
    members: dict[str, xr.Dataset] = {}
    missing: dict[str, str] = {}
    for cell in cells:
        reason = _why_not(directory.path / cell)
        if reason is None:
            with StoredRun(directory.path / cell) as stored:
                members[cell] = stored.metrics.load()
        else:
            missing[cell] = reason
    if not members:
        return None
    axes = axes_of(cells.values(), {str(v) for member in members.values() for v in member.variables})
    header = read_text(atomic.read_text(directory.scenario), str(directory.scenario)).plain()
    dataset = joined(axes, cells, members)
    for axis in axes:
        dataset[axis.name].attrs = _axis_attributes(axis, header)
    dataset.attrs = datasets.global_attributes(
        title=str(header.get("name")),
        summary=str(header.get("description") or ""),
        scenario=atomic.read_text(directory.scenario),
        provenance=collect(tuple(sys.argv)),
        references=header.get("references") or (),
        **{MISSING: missing},
    )
    return dataset


def _why_not(member: Path) -> str | None:
    """Why a member has no metrics to show; None if it has."""
    directory = RunDirectory(member)
    if not directory.record.is_file():
        return "has not begun"
    found = record.observed(record.read(directory.record))
    if found.status != "done":
        return f"{found.status}: {found.reason}" if found.reason else found.status
    return None if directory.metrics.is_file() else "has recorded no metrics"


def axes_of(cells: Iterable[Mapping[str, Any]], taken: Iterable[str] = ()) -> list[Axis]:
    """The axes that the labels of members span; `taken` are names that dimensions cannot have."""
    columns: dict[str, list[Any]] = {}
    for labels in cells:
        for key, label in labels.items():
            columns.setdefault(key, []).append(label)
    reserved, axes = {names.STEP, COMPILE_SECONDS, *taken}, []
    for key, short in short_names(columns).items():
        name = re.sub(r"\W", "_", short)
        name = f"axis_{name}" if name in reserved or not name[0].isalpha() else name
        reserved |= {name, names.label_name(name)}
        axes.append(_axis(key, name, list(dict.fromkeys(columns[key]))))
    return axes


def _axis(key: str, name: str, labels: list[Any]) -> Axis:
    # Variants are named by text, even where it reads as a number; values of a key may be arithmetic.
    values: list[Any] = [_number(label) if "." in key else None for label in labels]
    if any(value is None for value in values):
        values = [str(label).lower() if isinstance(label, bool) else str(label) for label in labels]
    else:
        values = [float(v) if any(isinstance(w, float) for w in values) else v for v in values]
    ordered = list(dict.fromkeys(values if isinstance(values[0], str) else sorted(values)))
    return Axis(key, name, tuple(ordered), {lb: ordered.index(v) for lb, v in zip(labels, values, strict=True)})


def _number(label: Any) -> int | float | None:
    if isinstance(label, str):
        try:
            return evaluate(label)
        except ValueError:
            return None
    return label if isinstance(label, int | float) and not isinstance(label, bool) else None


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


def _axis_attributes(axis: Axis, scenario: Mapping[str, Any]) -> dict[str, Any]:
    about = {"long_name": axis.key, "units": "1", "coverage_content_type": names.COORDINATE, KEY: axis.key}
    if isinstance(axis.labels[0], str):
        return {**about, "long_name": f"label along the axis {axis.key}"}
    return {**about, "units": _units(axis.key, scenario)}


def _units(key: str, scenario: Mapping[str, Any]) -> str:
    """Units of a key as its option declares them, where CF knows them; otherwise `1`."""
    section, _, option = key.partition(".")
    models: dict[str, type[Options]] = dict(PLAIN)
    if section == "pde":
        try:
            models[section] = kinds.load("PDE", scenario["pde"]["type"]).parameters
        except (MissingError, KeyError, TypeError):
            # A sweep may be read where its plugin is not installed.
            return "1"
    found = models[section].model_fields.get(option) if section in models else None
    extra = found.json_schema_extra if found else None
    units = str(extra.get("units", "1")) if isinstance(extra, dict) else "1"
    return units if _CF_UNITS.fullmatch(units) else "1"
