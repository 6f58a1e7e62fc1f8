"""A sweep's directory: which members it has, along which axes they lie, and what can be read of them.

Axes have the last word of their key as their name (`pde.xi` is `xi`). Numbers are numeric coordinates in ascending
order; labels of variants are text, stored as CF wants it and turned into an index on reading.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import MissingError, ScenarioError, StorageError
from toolkit.core.options import Options
from toolkit.runs import atomic, datasets, names, record
from toolkit.runs.directory import RECORD_FILE, RunDirectory
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


@dataclass(frozen=True)
class Members:
    """The members of a sweep by name: all with their labels, those that can be read, and why others cannot."""

    cells: Mapping[str, Mapping[str, Any]]
    present: Mapping[str, RunDirectory]
    missing: Mapping[str, str]


def sweep_directory(path: str | Path) -> RunDirectory:
    """The directory of a sweep; ScenarioError if the folder is not that of one."""
    directory = RunDirectory(Path(path))
    if not directory.sweep.is_file():
        hint = "; open a run with open_run" if directory.record.is_file() else ""
        raise ScenarioError(f"{path} is not the directory of a sweep: it holds no {directory.sweep.name}{hint}")
    return directory


def cells_of(directory: RunDirectory) -> dict[str, dict[str, Any]]:
    """Labels by axis, by member."""
    content = atomic.read_json(directory.sweep)
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, dict) or not cells or not all(isinstance(labels, dict) for labels in cells.values()):
        raise StorageError(f"{directory.sweep} does not list the members of the sweep; restore the file")
    return cells


def members_of(directory: RunDirectory, has: Callable[[RunDirectory], bool], what: str) -> Members:
    """The members that are done and have what is asked for; `what` names it."""
    cells = cells_of(directory)
    folders = {cell: RunDirectory(directory.path / cell) for cell in cells}
    reasons = {cell: _why_not(folder, has, what) for cell, folder in folders.items()}
    present = {cell: folders[cell] for cell, reason in reasons.items() if reason is None}
    return Members(cells, present, {cell: reason for cell, reason in reasons.items() if reason is not None})


def _why_not(member: RunDirectory, has: Callable[[RunDirectory], bool], what: str) -> str | None:
    """Why a member has nothing to show; None if it has."""
    if not member.record.is_file():
        return "has not begun"
    found = record.observed(record.read(member.record))
    if found.status != "done":
        return f"{found.status}: {found.reason}" if found.reason else found.status
    return None if has(member) else f"has recorded no {what}"


def is_newest(directory: RunDirectory, combined: Path) -> bool:
    """Whether a combined file was written after everything that happened to the members."""
    if not combined.is_file():
        return False
    written = combined.stat().st_mtime_ns
    records = [directory.path / cell / RECORD_FILE for cell in cells_of(directory)]
    return all(path.stat().st_mtime_ns <= written for path in records if path.is_file())


def header_of(directory: RunDirectory) -> dict[str, Any]:
    """The scenario of a sweep as plain data."""
    return read_text(atomic.read_text(directory.scenario), str(directory.scenario)).plain()


def global_attributes(directory: RunDirectory, **more: Any) -> dict[str, datasets.Attribute]:
    """Global attributes of a combined Dataset."""
    header = header_of(directory)
    return datasets.global_attributes(
        title=str(header.get("name")),
        summary=str(header.get("description") or ""),
        scenario=atomic.read_text(directory.scenario),
        provenance=collect(tuple(sys.argv)),
        references=header.get("references") or (),
        **more,
    )


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


def axis_attributes(axis: Axis, scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of an axis's coordinate; `scenario` as plain data."""
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
