"""Runs a scenario from start to end, or on from its checkpoint: directory, backend, status, results, errors.

    run(scenario) → directory → backend → build → train | optimise | simulate → metrics.nc, fields.nc, plots

A run that fails or is stopped says so in `run.json` before the error goes on to the caller.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from toolkit.core.backend import choose_device, devices
from toolkit.core.errors import Interrupted, PhinverseError, ScenarioError
from toolkit.runs import atomic, late, outcome, record, work
from toolkit.runs.directory import RunDirectory, create, create_cell
from toolkit.runs.events import SILENT, Events
from toolkit.runs.lock import DirectoryInUse, locked
from toolkit.runs.open import StoredRun, open_run
from toolkit.runs.sweep_fields import write_fields
from toolkit.runs.sweeps import write_sweep
from toolkit.runs.together import Group, Member, seedless, suits
from toolkit.scenario.load import load_scenario
from toolkit.scenario.scenario import Scenario
from toolkit.scenario.sweep import Cell, expand

_log = logging.getLogger(__name__)

MOST = 32
"""Runs that are done as one group."""


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    path: Path
    stored: StoredRun
    network: Mapping[str, Any]
    """Trained parameters as NumPy arrays, by `<network>/<layer>.<parameter>`; empty without a network."""

    @property
    def metrics(self) -> xr.Dataset:
        """What was measured along `step`."""
        return self.stored.metrics

    @property
    def fields(self) -> xr.Dataset:
        """Predictions, targets and true controls."""
        return self.stored.fields


def run(
    scenario: Scenario,
    out: str | Path = "runs",
    name: str | None = None,
    events: Events = SILENT,
    command: tuple[str, ...] | None = None,
) -> Run:
    """Run one scenario without a sweep in a new directory below `out`; raises what made it fail."""
    if scenario.sections.sweep:
        raise ScenarioError("this scenario has a sweep: run its cells with run_sweep, or remove the key `sweep`")
    # A run that cannot start leaves no directory, whose name would then be taken.
    _check_device(scenario)
    directory = create(Path(out), scenario.name, scenario.content_hash(), name)
    return _run_in(directory, scenario, events, command or tuple(sys.argv), resume=False)


def run_sweep(
    scenario: Scenario,
    out: str | Path = "runs",
    name: str | None = None,
    events: Events = SILENT,
    command: tuple[str, ...] | None = None,
    together: bool = False,
) -> Sweep:
    """Run all cells of a sweep one after the other; a cell that fails does not stop the others.

    With `together`, cells that differ in `run.seed` alone are built and compiled once, and make their updates side by
    side where that is faster (JAX); the numbers are the same, the times each one's share.
    """
    cells = expand(scenario)
    for cell in cells:
        _check_device(cell.scenario)
    directory = create(Path(out), scenario.name, scenario.content_hash(), name)
    listed = {cell.cell_id: cell.labels for cell in cells}
    atomic.write_text(directory.scenario, scenario.to_yaml())
    atomic.write_json(directory.sweep, {"started": record.utc_now(), "scenario": scenario.name, "cells": listed})
    sweep = _Cells(directory, cells, events, command or tuple(sys.argv))
    groups = _groups(cells) if together else [[cell] for cell in cells]
    if together and len(groups) == len(cells):
        events.message("no two cells differ in run.seed alone and have no time limit: each is done alone")
    for group in groups:
        if len(group) > 1:
            sweep.together(group)
        else:
            sweep.alone(group[0])
    return sweep.ended()


def _groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that differ in `run.seed` alone and have no time limit side by side, in the order of the first of each."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(seedless(cell.scenario) if suits(cell.scenario) else cell.cell_id, []).append(cell)
    # Each that has begun keeps files open, and its state in memory.
    return [group[i : i + MOST] for group in groups.values() for i in range(0, len(group), MOST)]


def complete(
    path: Path,
    scenario: Scenario,
    events: Events = SILENT,
    command: tuple[str, ...] = (),
    retry_failed: bool = False,
    device: str | None = None,
    trust_lock: bool = False,
) -> str:
    """Do what a run directory lacks: begin it, go on from its checkpoint, or nothing; its status afterwards.

    One that has failed is begun anew with `retry_failed` only. DirectoryInUse if another process works on it. `device`
    takes the place of `run.device` in this process, where it may have another name. With `trust_lock` a run of another
    host, which cannot be asked whether it lives, counts as interrupted once the lock is free.
    """
    directory = RunDirectory(path)
    with locked(path):
        # Looked at under the lock: another process may have finished it a moment ago.
        before = outcome.status_of(directory)
        if before == "running" and not trust_lock:
            raise DirectoryInUse(f"{path} is in use by another process; wait for it, or stop it first")
        if before == "done" or (before == "failed" and not retry_failed):
            return before
        goes_on = before == "running" or outcome.goes_on(directory, before)
        work.do(directory, scenario, events, command, goes_on, device)
    _plot(directory, scenario, events)
    return "done"


def resume(path: str | Path, events: Events = SILENT) -> Run:
    """Go on from the last checkpoint of a run; the result is that of an uninterrupted run."""
    directory = open_run(path).directory
    state = record.observed(record.read(directory.record))
    if state.status == "done":
        raise ScenarioError(f"{path} is done; there is nothing to resume")
    if state.status == "running":
        raise ScenarioError(f"{path} is still running as process {state.pid} on {state.host}")
    scenario = load_scenario(directory.scenario)
    return _run_in(directory, scenario, events, state.command, resume=True)


def resume_sweep(path: str | Path, events: Events = SILENT) -> Sweep:
    """Finish a sweep: cells that are done stay, those that were stopped go on, those that are missing or failed run."""
    directory = RunDirectory(Path(path))
    cells = _Cells(directory, expand(load_scenario(directory.scenario)), events, tuple(sys.argv))
    for cell in cells.cells:
        cells.alone(cell)
    return cells.ended()


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep that this process has looked at."""

    path: Path
    done: tuple[str, ...]
    failed: Mapping[str, str]
    """Why a cell is not done, by cell."""


@dataclass
class _Cells:
    """Does what cells of a sweep lack, and keeps how each has ended."""

    directory: RunDirectory
    cells: list[Cell]
    events: Events
    command: tuple[str, ...]
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def ended(self) -> Sweep:
        """The sweep, its cells put together."""
        combine_cells(self.directory, self.cells, self.events)
        order = [cell.cell_id for cell in self.cells]
        return Sweep(self.directory.path, tuple(sorted(self.done, key=order.index)), self.failed)

    def alone(self, cell: Cell) -> None:
        """Begin a cell, go on with it, or leave it as it is."""
        member = create_cell(self.directory.path, cell.cell_id)
        before = outcome.status_of(member)
        if before in ("done", "running"):
            self._say(cell, f" is {before}")
            if before == "done":
                self.done.append(cell.cell_id)
            else:
                self.failed[cell.cell_id] = "another process is at work on it"
            return
        self._say(cell)
        goes_on = outcome.goes_on(member, before)
        try:
            _run_in(member, cell.scenario, self.events, self.command, resume=goes_on).stored.close()
            self.done.append(cell.cell_id)
        except Interrupted:
            raise
        except Exception as error:
            # A bug in one cell, too, must not cost the others; its trace is in the log, its reason in run.json.
            self._failed(cell, error)

    def together(self, cells: list[Cell]) -> None:
        """Begin cells that differ in `run.seed` alone, side by side where that is faster."""
        members = {
            cell.cell_id: Member(cell.cell_id, create_cell(self.directory.path, cell.cell_id), cell.scenario)
            for cell in cells
        }
        by_name = {cell.cell_id: cell for cell in cells}
        group = Group(
            tuple(members.values()),
            self.events,
            self.command,
            begins=lambda member: self._say(by_name[member.name]),
            ends=lambda member: _plot(member.directory, member.scenario, self.events),
            fails=lambda member: self._failed(by_name[member.name], member.error),
        )
        try:
            group.run()
        except Interrupted:
            raise
        except Exception as error:
            # Of none of them: those that are neither done nor failed have this as their reason.
            for name, member in members.items():
                if member.error is None and outcome.status_of(member.directory) != "done":
                    self._failed(by_name[name], error)
        for cell in cells:
            if members[cell.cell_id].left:
                self.alone(cell)
            elif cell.cell_id not in self.failed:
                self.done.append(cell.cell_id)

    def _say(self, cell: Cell, what: str = "") -> None:
        number = self.cells.index(cell) + 1
        self.events.message(f"cell {number} of {len(self.cells)}: {cell.cell_id}{what}")

    def _failed(self, cell: Cell, error: Exception | None) -> None:
        assert error is not None
        _log.debug("cell %s failed", cell.cell_id, exc_info=error)
        self.failed[cell.cell_id] = outcome.reason(error)
        self.events.message(f"{cell.cell_id} failed: {self.failed[cell.cell_id]}")


def combine_cells(directory: RunDirectory, cells: list[Cell], events: Events) -> None:
    """Put the fields and metrics of the members together, and draw the metrics; one process at a time does it."""
    try:
        with locked(directory.path):
            for folder in (directory.path, directory.plots):
                atomic.remove_leftovers(folder)
            _combine(directory, cells, events)
    except DirectoryInUse:
        events.message(f"another process is putting the members of {directory.path} together")


def _combine(directory: RunDirectory, cells: list[Cell], events: Events) -> None:
    try:
        write_fields(directory.path, events.message)
    except PhinverseError as error:
        # Every member has its own.
        events.message(f"the fields of the members are not put together: {error}")
    # The last, so that a sweep whose `metrics.nc` is up to date has been dealt with.
    if write_sweep(directory.path) is None or not any(cell.scenario.sections.output.plots for cell in cells):
        return
    try:
        late.write_sweep_plots(directory.path)
    except PhinverseError as error:
        # The results are complete without pictures.
        events.message(f"no picture of the sweep: {error}")


def _check_device(scenario: Scenario) -> None:
    options = scenario.sections.run
    choose_device(options.device, devices(options.backend), options.backend)


def _run_in(directory: RunDirectory, scenario: Scenario, events: Events, command: tuple[str, ...], resume: bool) -> Run:
    with locked(directory.path):
        network = work.do(directory, scenario, events, command, resume)
    _plot(directory, scenario, events)
    return Run(directory.path, open_run(directory.path), network)


def _plot(directory: RunDirectory, scenario: Scenario, events: Events) -> None:
    if not scenario.sections.output.plots:
        return
    try:
        late.write_plots(directory.path)
    except PhinverseError as error:
        # The results are complete without pictures.
        events.message(f"no pictures: {error}")
