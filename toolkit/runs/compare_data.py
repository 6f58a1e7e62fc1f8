"""The numbers of a comparison: plain data for tables and JSON, and one Dataset along `run` and `step`.

    ds = toolkit.compare(["runs/sine", "runs/sine_conditioning/first"])
    ds.validation_loss.sel(run="sine/first")
    ds.validation_loss.where(ds.update_type == "sip", drop=True)

Runs have the names that tables show: their paths below the folder that all of them share.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toolkit.runs import datasets, names
from toolkit.runs.compare import (
    Budgets,
    Group,
    Member,
    Setting,
    budgets,
    columns,
    differing,
    groups_of,
    headings,
    is_seed,
    mean_step_seconds,
    read_members,
    text,
    value_at,
    warnings,
)
from toolkit.runs.provenance import collect
from toolkit.runs.sweep_axes import COMPILE_SECONDS, KEY, Axis
from toolkit.runs.sweeps import joined

JUDGES = ("train_loss", "validation_loss", "control_error")
WALL = "wall_seconds"
RUN = "run"
REACHED = ("final", "best", "at_equal_seconds", "at_equal_steps")
SETTLED = ("steps", "wall_seconds", "step_seconds", "compile_seconds", "peak_memory_bytes")
"""Numbers of a run beside what it was judged by."""

Numbers = dict[str, Any]


def compare(directories: Sequence[str | Path] | str | Path, out: str | Path = "runs") -> xr.Dataset:
    """The metrics of runs side by side along `run` and `step`, NaN where not recorded; whatever differs between the
    runs (`seed`, `learning_rate`, …) is a coordinate along `run`, and so are `scenario` and `status`.

    Directories of runs, of sweeps and folders above them; ids and `last` are looked for in `out`. ScenarioError where
    there is no run, StorageError where none can be read.
    """
    given = [directories] if isinstance(directories, str | Path) else list(directories)
    return dataset_of(read_members(given, Path(out)))


def numbers(members: Sequence[Member]) -> Numbers:
    """Runs, groups of repetitions, budgets and warnings as plain data; None where there is no number."""
    spent = budgets(members)
    keys = differing(members)
    runs = {member.label: _run_numbers(member, spent, keys) for member in members}
    return {
        "columns": headings([*columns(members), *filter(is_seed, keys)]),
        "equal_seconds": spent.seconds,
        "equal_steps": spent.steps,
        "runs": list(runs.values()),
        "groups": [_group_numbers(group, runs) for group in groups_of(members)],
        "warnings": warnings(members),
    }


def _run_numbers(member: Member, spent: Budgets, keys: Sequence[str]) -> Numbers:
    judged: Numbers = {}
    for name in JUDGES:
        steps, values = member.recorded(name)
        finite = np.isfinite(values)
        best = int(np.argmin(np.where(finite, values, np.inf))) if finite.any() else None
        judged[name] = {
            "final": float(values[-1]) if values.size else None,
            "best": None if best is None else float(values[best]),
            "best_step": None if best is None else int(steps[best]),
            "at_equal_seconds": value_at(member, name, WALL, spent.seconds),
            "at_equal_steps": value_at(member, name, names.STEP, spent.steps),
        }
    _, wall = member.recorded(WALL)
    metrics = member.metrics
    compiled = None if metrics is None else metrics.attrs.get(COMPILE_SECONDS)
    return {
        "run": member.label,
        "path": str(member.path),
        "scenario": member.scenario,
        "status": member.status,
        "reason": member.reason,
        "settings": {key: member.settings.get(key) for key in keys},
        **judged,
        "steps": None if metrics is None else int(metrics[names.STEP].values[-1]),
        "wall_seconds": float(wall[-1]) if wall.size else None,
        "step_seconds": mean_step_seconds(member),
        "compile_seconds": None if compiled is None else float(compiled),
        "peak_memory_bytes": member.peak_memory,
    }


def _group_numbers(group: Group, runs: Mapping[str, Numbers]) -> Numbers:
    """Median and range over the repetitions that count."""
    counting = [runs[member.label] for member in group.members if member.counts]
    judged = {name: {key: _spread([run[name][key] for run in counting]) for key in REACHED} for name in JUDGES}
    return {
        "scenario": group.scenario,
        "settings": dict(group.settings),
        "runs": [member.label for member in group.members],
        "n": len(counting),
        **judged,
        **{name: _spread([run[name] for run in counting]) for name in SETTLED},
    }


def _spread(values: Sequence[float | None]) -> Numbers | None:
    """Median, smallest and largest of those that have the number, and how many have."""
    known = np.array([value for value in values if value is not None], float)
    if not known.size:
        return None
    return {
        "median": float(np.median(known)),
        "min": float(known.min()),
        "max": float(known.max()),
        "n": int(known.size),
    }


def dataset_of(members: Sequence[Member]) -> xr.Dataset:
    """The metrics of these runs as one Dataset."""
    labels = tuple(member.label for member in members)
    axis = Axis(RUN, RUN, labels, {label: i for i, label in enumerate(labels)})
    recorded = {member.label: member.metrics for member in members if member.metrics is not None}
    if recorded:
        result = joined([axis], {label: {RUN: label} for label in labels}, recorded)
    else:
        result = xr.Dataset(coords={RUN: list(labels)})
    quality = {"coverage_content_type": names.QUALITY}
    if any(member.peak_memory for member in members):
        peaks = np.array([member.peak_memory or np.nan for member in members], float)
        result["peak_memory"] = (RUN, peaks, {"long_name": "largest memory of the process", "units": "byte", **quality})
    group = {m.label: i for i, same in enumerate(groups_of(members)) for m in same.members}
    result = result.assign_coords(
        scenario=_labels([member.scenario for member in members], "scenario"),
        status=_labels([member.status for member in members], "status of the run"),
        group=_labels([group.get(label, -1) for label in labels], "runs that differ in their seeds alone"),
    )
    result[RUN].attrs = {"long_name": "run", "units": "1", "coverage_content_type": names.COORDINATE}
    result = result.assign_coords(_setting_coordinates(members, {str(name) for name in result.variables}))
    spent, said = budgets(members), warnings(members)
    listed = ", ".join(dict.fromkeys(member.scenario for member in members if member.scenario))
    about = datasets.global_attributes(
        title=f"comparison of {len(members)} runs",
        summary=f"metrics of runs of {listed or 'unknown scenarios'}",
        scenario="",
        provenance=collect(tuple(sys.argv)),
        warnings=json.dumps(said),
    )
    # There are several.
    result.attrs = {name: value for name, value in about.items() if name != "scenario"}
    # An attribute cannot say "none".
    result.attrs |= {"equal_seconds": spent.seconds} if spent.seconds is not None else {}
    result.attrs |= {"equal_steps": spent.steps} if spent.steps is not None else {}
    return result


def _setting_coordinates(members: Sequence[Member], taken: set[str]) -> dict[str, Any]:
    """What differs between the runs, along `run`; numbers where all are numbers, NaN or no text where one has none."""
    found: dict[str, Any] = {}
    keys = differing(members)
    for key, heading in headings(keys).items():
        # `ds.update` is a method of every Dataset: the key in full stands for such a word.
        name = re.sub(r"\W", "_", key if hasattr(xr.Dataset, heading) else heading)
        while name in taken:
            name = f"axis_{name}"
        taken.add(name)
        values = [member.settings.get(key) for member in members]
        found[name] = _labels(_uniform(values), key, **{KEY: key})
    return found


def _uniform(values: Sequence[Setting]) -> list[Any]:
    known = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in known):
        return ["" if value is None else text(value) for value in values]
    if len(known) == len(values) and all(isinstance(value, int) for value in known):
        return list(values)
    return [np.nan if value is None else float(value) for value in values]


def _labels(values: Sequence[Any], long_name: str, **more: Any) -> tuple[Any, ...]:
    about = {"long_name": long_name, "units": "1", "coverage_content_type": names.COORDINATE}
    return (RUN, np.array(values), {**about, **more})
