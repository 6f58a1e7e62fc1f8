"""Runs a scenario from start to end, or on from its checkpoint: directory, backend, status, results, errors.

    run(scenario) → directory → backend → build → train | optimise | simulate → metrics.nc, fields.nc, plots

A run that fails or is stopped says so in `run.json` before the error goes on to the caller.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from toolkit.core.backend import Backend, choose_device, devices, using
from toolkit.core.errors import Interrupted, PhinverseError, ScenarioError
from toolkit.core.solves import run_errors
from toolkit.runs import atomic, checkpoint, late, monitors, outcome, peak_memory, record
from toolkit.runs.datasets import global_attributes
from toolkit.runs.directory import RunDirectory, create, create_cell
from toolkit.runs.events import SILENT, Events
from toolkit.runs.lock import DirectoryInUse, locked
from toolkit.runs.metrics import read_metrics, write_metrics_nc
from toolkit.runs.open import StoredRun, open_run
from toolkit.runs.provenance import collect, installed_versions
from toolkit.runs.samples import read_samples
from toolkit.runs.session import Session
from toolkit.runs.simulation import simulate
from toolkit.runs.stopping import StopRequest, stop_requests
from toolkit.runs.sweep_fields import write_fields
from toolkit.runs.sweeps import write_sweep
from toolkit.scenario.build import build
from toolkit.scenario.load import load_scenario
from toolkit.scenario.scenario import Scenario
from toolkit.scenario.sweep import Cell, expand

_log = logging.getLogger(__name__)

METRICS = {
    "direction_norm": ("Euclidean norm of the update direction before clipping", "1"),
    "train_control_error": ("control error on the training batch, mean over its samples", "1"),
    "kept_rank": ("singular values of the Jacobian above the cut", "1"),
    "largest_singular_value": ("largest singular value of the Jacobian of the mini-batch", "1"),
    "smallest_kept": ("smallest singular value of the Jacobian that was kept", "1"),
    "relative_cut": ("cut that was applied to singular values, over the largest of them", "1"),
    "resolved": ("1, or 0 where directions were dropped because a Gram matrix cannot resolve them", "1"),
    "krylov_steps": ("Lanczos steps", "1"),
    "krylov_change": ("relative difference of the change of the outputs from that of half the Lanczos steps", "1"),
}


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
) -> Sweep:
    """Run all cells of a sweep one after the other; a cell that fails does not stop the others."""
    cells = expand(scenario)
    for cell in cells:
        _check_device(cell.scenario)
    directory = create(Path(out), scenario.name, scenario.content_hash(), name)
    listed = {cell.cell_id: cell.labels for cell in cells}
    atomic.write_text(directory.scenario, scenario.to_yaml())
    atomic.write_json(directory.sweep, {"started": record.utc_now(), "scenario": scenario.name, "cells": listed})
    return _run_cells(directory, cells, events, command or tuple(sys.argv))


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
        _run_locked(directory, scenario, events, command, goes_on, device)
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
    return _run_cells(directory, expand(load_scenario(directory.scenario)), events, tuple(sys.argv))


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep that this process has looked at."""

    path: Path
    done: tuple[str, ...]
    failed: Mapping[str, str]
    """Why a cell is not done, by cell."""


def _run_cells(directory: RunDirectory, cells: list[Cell], events: Events, command: tuple[str, ...]) -> Sweep:
    done: list[str] = []
    failed: dict[str, str] = {}
    for number, cell in enumerate(cells, start=1):
        member = create_cell(directory.path, cell.cell_id)
        before = outcome.status_of(member)
        if before in ("done", "running"):
            events.message(f"cell {number} of {len(cells)}: {cell.cell_id} is {before}")
            if before == "done":
                done.append(cell.cell_id)
            else:
                failed[cell.cell_id] = "another process is at work on it"
            continue
        events.message(f"cell {number} of {len(cells)}: {cell.cell_id}")
        try:
            _run_in(member, cell.scenario, events, command, resume=outcome.goes_on(member, before)).stored.close()
            done.append(cell.cell_id)
        except Interrupted:
            raise
        except Exception as error:
            # A bug in one cell, too, must not cost the others; its trace is in the log, its reason in run.json.
            _log.debug("cell %s failed", cell.cell_id, exc_info=error)
            failed[cell.cell_id] = outcome.reason(error)
            events.message(f"{cell.cell_id} failed: {failed[cell.cell_id]}")
    combine_cells(directory, cells, events)
    return Sweep(directory.path, tuple(done), failed)


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
        network = _run_locked(directory, scenario, events, command, resume)
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


def _run_locked(
    directory: RunDirectory,
    scenario: Scenario,
    events: Events,
    command: tuple[str, ...],
    resume: bool,
    device: str | None = None,
) -> dict[str, Any]:
    """Run in a directory that this process owns; `run.json` tells the outcome whatever happens."""
    sections = scenario.sections
    options = sections.run
    with (
        stop_requests() as stop,
        using(
            options.backend, device or options.device, sections.physics_precision, sections.network_precision
        ) as backend,
    ):
        peak_memory.reset()
        outcome.begin(directory, scenario, backend, command, resume)
        # A run that was killed before its first checkpoint starts again.
        goes_on = resume and checkpoint.exists(directory.checkpoint)
        with outcome.told(directory), run_errors(sections.pde.type):
            network = _work(directory, scenario, backend, events, stop, goes_on)
    return network


def _work(
    directory: RunDirectory,
    scenario: Scenario,
    backend: Backend,
    events: Events,
    stop: StopRequest,
    resume: bool,
) -> dict[str, Any]:
    """Build and run; the trained parameters as NumPy arrays."""
    sections = scenario.sections
    shown = installed_versions(("phinverse", "phiflow", backend.name))
    versions = " · ".join(f"{name} {version}" for name, version in shown.items())
    events.message(f"{versions} · {backend.device} · physics {backend.physics_dtype}, network {backend.network_dtype}")
    events.message(f"{scenario.name} in {directory.path}")
    attributes = _attributes(scenario)
    built = build(sections, backend, read_samples)
    if built.trainer is None:
        try:
            simulate(sections, built, directory, attributes, events, stop, resume)
        finally:
            _write_metrics(directory, attributes, backend.trace_seconds, monitors.descriptions(built.problem))
        return {}
    session = Session(sections, built, directory, attributes, events, stop)
    try:
        state = session.run(resume)
        session.write_fields(state)
    finally:
        session.close()
        described = {
            **(sections.update.plugin.metrics if sections.update else {}),
            **monitors.descriptions(built.problem),
        }
        _write_metrics(directory, attributes, session.compile_seconds, described)
    return {name: backend.numpy(value) for name, value in state.params.items()}


def _attributes(scenario: Scenario) -> dict[str, Any]:
    header = scenario.sections.header
    return global_attributes(
        title=header.name,
        summary=header.description,
        scenario=scenario.to_yaml(),
        provenance=collect(tuple(sys.argv)),
        references=header.references,
    )


def _write_metrics(
    directory: RunDirectory,
    attributes: Mapping[str, Any],
    compile_seconds: float,
    described: Mapping[str, Any],
) -> None:
    records = read_metrics(directory.metrics_lines)
    if records:
        write_metrics_nc(
            directory.metrics,
            records,
            {**attributes, "compile_seconds": compile_seconds},
            {**METRICS, **described},
        )
