"""Runs side by side: what differs between them, what they reached, and what they reached with equal budgets.

A budget is equal where all runs have spent as much: the loss of each at the largest training time that all of them
reached, and at the largest number of updates. Runs that failed are listed, but do not count for that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toolkit.core.errors import PhinverseError, ScenarioError, StorageError
from toolkit.runs import atomic, names, record
from toolkit.runs.directory import LAST, RECORD_FILE, SWEEP_FILE, RunDirectory, find, is_run
from toolkit.runs.open import StoredRun
from toolkit.scenario.problems import dotted
from toolkit.scenario.scenario import leaves
from toolkit.scenario.sweep import short_names
from toolkit.scenario.yaml_loader import read_text

Setting = Any
"""Text or a number; lists as JSON text."""

HEADER = ("name", "description", "references", "extends", "sweep", "output")
"""Sections that no number depends on."""
FILES_ONLY = ("train.checkpoint_every",)
SAME_PROBLEM = ("grid", "pde", "time", "data", "loss")
"""Sections that losses depend on."""
LEARNING_ONLY = ("data.train", "data.shuffle")
SEED = "seed"
NOT_BEGUN, UNREADABLE = "not begun", "unreadable"
COUNTING = ("done", "interrupted", "running")
"""Statuses of runs that count for budgets and medians."""
PEAK_MEMORY = "peak_memory_bytes"
FEW = 0.05
"""Part of the updates that may have been made with others before times are no longer one's own."""


@dataclass(frozen=True)
class Member:
    """One run as it is now."""

    path: Path
    label: str
    """Its path below the folder that all have in common."""
    status: str
    """As in `run.json`, or NOT_BEGUN or UNREADABLE."""
    reason: str | None
    scenario: str
    settings: Mapping[str, Setting]
    """The resolved scenario by dotted key, without what no number depends on."""
    metrics: xr.Dataset | None
    peak_memory: int | None = None
    """Bytes."""
    together: int = 0
    """Number of updates that were made with those of other runs; their seconds are shares."""

    @property
    def counts(self) -> bool:
        """Whether it has recorded something and did not fail."""
        return self.metrics is not None and self.status in COUNTING

    def recorded(self, name: str, along: str = names.STEP) -> tuple[np.ndarray, np.ndarray]:
        """(steps or seconds, values) where a metric was recorded; empty arrays where it never was."""
        if self.metrics is None or name not in self.metrics or along not in self.metrics.variables:
            return np.zeros(0), np.zeros(0)
        at, values = self.metrics[along].values.astype(float), self.metrics[name].values
        there = np.isfinite(at) & ~np.isnan(values)
        return at[there], values[there]


def read_members(directories: Iterable[str | Path], out: Path) -> list[Member]:
    """All runs that are meant: runs, cells of sweeps, what lies below other folders; ids and `last` as elsewhere.

    ScenarioError where there is none, StorageError where none of them can be read.
    """
    paths = list(dict.fromkeys(path for given in directories for path in _runs_of(str(given), out)))
    top = common_folder(paths)
    members = [_read(path, path.relative_to(top).as_posix() if path != top else path.name) for path in paths]
    if all(member.status == UNREADABLE for member in members):
        raise StorageError(members[0].reason or f"{paths[0]} cannot be read")
    return members


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that all runs are in; of a single one, that run."""
    # As they were given: links are not followed.
    return Path(os.path.commonpath([path.absolute() for path in paths]))


def _runs_of(given: str, out: Path) -> list[Path]:
    for path in (Path(given), out / given) if given != LAST else ():
        if path.is_dir() and not is_run(path):
            below = sorted({p.parent for name in (RECORD_FILE, SWEEP_FILE) for p in path.rglob(name)})
            if not below:
                raise ScenarioError(f"{path} holds no run: there is no {RECORD_FILE} in it or below it")
            return [run.absolute() for folder in below for run in _cells(folder)]
    return [run.absolute() for run in _cells(find(given, out))]


def _cells(path: Path) -> list[Path]:
    """The run itself, or all cells of a sweep, also those that have not begun."""
    directory = RunDirectory(path)
    if not directory.sweep.is_file():
        return [path]
    content = atomic.read_json(directory.sweep)
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, dict):
        raise StorageError(f"{directory.sweep} does not list the members of the sweep; restore the file")
    return [path / cell for cell in cells]


def _read(path: Path, label: str) -> Member:
    directory = RunDirectory(path)
    if not directory.record.is_file():
        return Member(path, label, NOT_BEGUN, "the sweep has not come to it yet", "", {}, None)
    try:
        with StoredRun(path) as stored:
            known = stored.record
            settings = read_text(stored.scenario_text, str(directory.scenario)).plain()
            kept = directory.metrics.is_file() or directory.metrics_lines.is_file()
            metrics = stored.metrics.load() if kept else None
    except PhinverseError as error:
        return Member(path, label, UNREADABLE, str(error), "", {}, None)
    peak = known.details.get(PEAK_MEMORY)
    usable = metrics if metrics is not None and metrics.sizes.get(names.STEP) else None
    memory = int(peak) if isinstance(peak, int | float) else None
    shared = known.details.get(record.TOGETHER, 0)
    return Member(path, label, known.status, known.reason, known.scenario, _settings(settings), usable, memory, shared)


def _settings(data: Mapping[str, Any]) -> dict[str, Setting]:
    found = {dotted(path): value for path, value in leaves({k: v for k, v in data.items() if k not in HEADER})}
    return {key: _setting(value) for key, value in found.items() if key not in FILES_ONLY}


def _setting(value: Any) -> Setting:
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if plain else json.dumps(value)


# --- what differs -----------------------------------------------------------------------------------------------------


def is_seed(key: str) -> bool:
    """Whether a key is a seed: runs that differ in nothing else are repetitions."""
    return key.rpartition(".")[2] == SEED


def differing(members: Sequence[Member]) -> list[str]:
    """Keys whose values are not the same in all runs that could be read, seeds included, in the order of the files."""
    read = [member for member in members if member.settings]
    keys = dict.fromkeys(key for member in read for key in member.settings)
    return [key for key in keys if len({repr(member.settings.get(key)) for member in read}) > 1]


def columns(members: Sequence[Member]) -> list[str]:
    """The differing keys that say something of their own: not those that come and go with a kind that differs."""
    read = [member for member in members if member.settings]
    keys = differing(members)
    return [key for key in keys if not is_seed(key) and not _comes_with_kind(key, keys, read)]


def _comes_with_kind(key: str, keys: Sequence[str], members: Sequence[Member]) -> bool:
    if all(key in member.settings for member in members):
        return False
    parts = key.split(".")
    for depth in range(1, len(parts)):
        kind = ".".join([*parts[:depth], "type"])
        if kind in keys and kind != key:
            pairs = {(repr(m.settings.get(kind)), repr(m.settings.get(key))) for m in members}
            if len(pairs) == len({first for first, _ in pairs}):
                return True
    return False


def headings(keys: Sequence[str]) -> dict[str, str]:
    """A short name for each key; the kind of a section is named by the section."""
    stripped = {key: key.removesuffix(".type") for key in keys}
    short = short_names(stripped.values())
    return {key: short[name] for key, name in stripped.items()}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds."""

    scenario: str
    settings: Mapping[str, Setting]
    """Values of the columns."""
    members: tuple[Member, ...]

    def words(self, names_of: Mapping[str, str], with_scenario: bool) -> str:
        """Its settings in one line."""
        said = [f"{names_of[key]} = {text(value)}" for key, value in self.settings.items() if value is not None]
        return ", ".join([*([self.scenario] if with_scenario or not said else []), *said])


def groups_of(members: Sequence[Member]) -> list[Group]:
    """Runs that could be read, repetitions together, in the order given."""
    keys = [key for key in differing(members) if not is_seed(key)]
    shown, found = columns(members), {}
    for member in members:
        if member.settings:
            place = (member.scenario, *(repr(member.settings.get(key)) for key in keys))
            found.setdefault(place, []).append(member)
    return [
        Group(same[0].scenario, {key: same[0].settings.get(key) for key in shown}, tuple(same))
        for same in found.values()
    ]


def text(value: Setting) -> str:
    """A setting for people; `–` where a run has none."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def warnings(members: Sequence[Member]) -> list[str]:
    """Why losses or times may not be comparable."""
    found = []
    keys = [key for key in differing(members) if not is_seed(key) and key not in LEARNING_ONLY]
    sections = [name for name in SAME_PROBLEM if any(key.partition(".")[0] == name for key in keys)]
    if sections:
        listed = ", ".join(key for key in keys if key.partition(".")[0] in sections)
        found.append(f"losses are not comparable: the runs differ in {' and '.join(sections)} ({listed})")
    timed = [member for member in members if member.counts and member.metrics is not None]
    shared = [m for m in timed if m.metrics is not None and m.together > FEW * float(m.metrics[names.STEP].max())]
    if 0 < len(shared) < len(timed):
        found.append(
            f"seconds are not comparable: {len(shared)} of {len(timed)} runs have made their updates side by side with "
            "others (run --together), theirs are shares"
        )
    return found


# --- numbers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budgets:
    """What all runs that count have spent at least; None where nothing was recorded."""

    seconds: float | None
    steps: int | None


def budgets(members: Sequence[Member]) -> Budgets:
    """The largest training time and number of updates that all runs that count reached."""
    counting = [member.metrics for member in members if member.counts and member.metrics is not None]
    if not counting:
        return Budgets(None, None)
    steps = min(int(metrics[names.STEP].values[-1]) for metrics in counting)
    seconds = [metrics["wall_seconds"].values for metrics in counting if "wall_seconds" in metrics]
    reached = [float(np.nanmax(values)) for values in seconds if not np.isnan(values).all()]
    return Budgets(min(reached) if len(reached) == len(counting) else None, steps)


def value_at(member: Member, name: str, along: str, limit: float | None) -> float | None:
    """The last value that was recorded with no more than this budget; None where it was not reached."""
    at, values = member.recorded(name, along)
    if limit is None or member.metrics is None or not at.size:
        return None
    spent = member.metrics[along].values.astype(float)
    inside = values[at <= limit]
    return float(inside[-1]) if inside.size and np.nanmax(spent) >= limit else None


def mean_step_seconds(member: Member) -> float | None:
    """Median duration of an update; the first ones of a program may be slower."""
    _, values = member.recorded("step_seconds")
    return float(np.median(values)) if values.size else None
