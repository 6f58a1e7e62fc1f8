"""What a batch consists of: every scenario, and every cell of every sweep, each in a directory that is found again.

    <out>/<scenario name>/batch-<hash>/            a scenario
    <out>/<scenario name>/batch-<hash>/<cell>/     a cell of a sweep

The hash is that of the resolved scenario (of the whole sweep for its cells), overrides included: the same arguments
lead to the same directories, another value of any key to others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.errors import ScenarioError
from toolkit.runs import atomic, record
from toolkit.runs.directory import RunDirectory, check_name
from toolkit.scenario.scenario import Scenario
from toolkit.scenario.sweep import Cell, expand

PREFIX = "batch-"
HASH_LENGTH = 12


@dataclass(frozen=True)
class Member:
    """One run of a batch."""

    name: str
    """`<scenario>`, or `<scenario>/<cell>`."""
    path: Path
    scenario: Scenario

    @property
    def directory(self) -> RunDirectory:
        """Its files."""
        return RunDirectory(self.path)


@dataclass(frozen=True)
class BatchSweep:
    """One sweep of a batch, whose members' metrics are put together when they have ended."""

    path: Path
    scenario: Scenario
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Plan:
    """All runs of a batch, in the order of the scenarios."""

    members: tuple[Member, ...]
    sweeps: tuple[BatchSweep, ...]
    paths: tuple[Path, ...]
    """Directories of runs and sweeps, one per scenario."""


def plan(scenarios: Sequence[Scenario], out: Path) -> Plan:
    """Directories and members of scenarios; nothing is written. A scenario that occurs twice is run once."""
    unique = list({_path(scenario, out): scenario for scenario in scenarios}.items())
    counts = Counter(scenario.name for _, scenario in unique)
    members: list[Member] = []
    sweeps: list[BatchSweep] = []
    for path, scenario in unique:
        # Scenarios of one name that differ by what was set are told apart by their directories.
        name = scenario.name if counts[scenario.name] == 1 else f"{scenario.name}/{path.name}"
        if not scenario.sections.sweep:
            members.append(Member(name, path, scenario))
            continue
        cells = tuple(expand(scenario))
        sweeps.append(BatchSweep(path, scenario, cells))
        members += [Member(f"{name}/{cell.cell_id}", path / cell.cell_id, cell.scenario) for cell in cells]
    return Plan(tuple(members), tuple(sweeps), tuple(path for path, _ in unique))


def check_directories(members: Iterable[Member]) -> None:
    """ScenarioError if a directory holds the run of another scenario, such as one that was given this name by hand."""
    foreign = []
    for member in members:
        file = member.directory.record
        if file.is_file() and record.read(file).content_hash != member.scenario.content_hash():
            foreign.append(f"{member.path} holds a run of another scenario; move it away, or choose another --out")
    if foreign:
        raise ScenarioError(*foreign)


def create_directories(given: Plan) -> None:
    """Make the directories of all members, and say in those of sweeps what they consist of."""
    for member in given.members:
        try:
            member.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic.storage_error("create", member.path, error) from error
    for sweep in given.sweeps:
        directory = RunDirectory(sweep.path)
        # Left as it is when a batch is run again: it says when the sweep was started.
        if not directory.sweep.is_file():
            listed = {cell.cell_id: cell.labels for cell in sweep.cells}
            header = {"started": record.utc_now(), "scenario": sweep.scenario.name}
            atomic.write_text(directory.scenario, sweep.scenario.to_yaml())
            atomic.write_json(directory.sweep, {**header, "cells": listed})


def _path(scenario: Scenario, out: Path) -> Path:
    return out / check_name(scenario.name, "name") / f"{PREFIX}{scenario.content_hash()[:HASH_LENGTH]}"
