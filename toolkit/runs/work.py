"""The work of one run in a directory that its process owns: build, train or simulate, write; `run.json` tells the end.

    begin → build → session or simulation → fields.nc, metrics.nc → done, failed or interrupted

It goes on step by step, so that the updates of several runs can be made together (`together`).
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from toolkit.core.backend import Backend, using
from toolkit.core.solves import run_errors
from toolkit.runs import checkpoint, monitors, outcome, peak_memory, record
from toolkit.runs.datasets import global_attributes
from toolkit.runs.directory import RunDirectory
from toolkit.runs.events import Events
from toolkit.runs.metrics import read_metrics, write_metrics_nc
from toolkit.runs.provenance import collect, installed_versions
from toolkit.runs.samples import read_samples
from toolkit.runs.session import Session
from toolkit.runs.simulation import simulate
from toolkit.runs.stopping import StopRequest, stop_requests
from toolkit.scenario.build import Built, build, with_seed
from toolkit.scenario.scenario import Scenario

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

Steps = Generator[Session, None, dict[str, Any]]
"""A run that waits before each update of its training; in the end the trained parameters as NumPy arrays."""


@dataclass
class Shared:
    """What runs that differ in `run.seed` alone have in common: it is built and compiled once."""

    built: Built | None = None
    programs: dict[Any, Any] = field(default_factory=dict)


@contextmanager
def environment(scenario: Scenario, device: str | None = None) -> Iterator[tuple[Backend, StopRequest]]:
    """The backend of a scenario, on `device` where that is given, and requests to stop."""
    sections = scenario.sections
    options, precisions = sections.run, (sections.physics_precision, sections.network_precision)
    with stop_requests() as stop, using(options.backend, device or options.device, *precisions) as backend:
        yield backend, stop


def do(
    directory: RunDirectory,
    scenario: Scenario,
    events: Events,
    command: tuple[str, ...],
    resume: bool,
    device: str | None = None,
) -> dict[str, Any]:
    """Do one run from its start or its checkpoint to its end; the trained parameters as NumPy arrays."""
    with environment(scenario, device) as (backend, stop):
        steps = stepwise(directory, scenario, backend, events, stop, command, resume)
        try:
            while True:
                next(steps)
        except StopIteration as end:
            trained: dict[str, Any] = end.value
            return trained
        except BaseException as error:
            # One that came between two updates is for the run to tell; its own comes back as it is.
            steps.throw(error)
            raise


def stepwise(
    directory: RunDirectory,
    scenario: Scenario,
    backend: Backend,
    events: Events,
    stop: StopRequest,
    command: tuple[str, ...],
    resume: bool,
    shared: Shared | None = None,
) -> Steps:
    """Do one run; its session whenever it is about to make an update."""
    peak_memory.reset()
    outcome.begin(directory, scenario, backend, command, resume)
    # A run that was killed before its first checkpoint starts again.
    goes_on = resume and checkpoint.exists(directory.checkpoint)
    with outcome.told(directory), run_errors(scenario.sections.pde.type):
        return (yield from _work(directory, scenario, backend, events, stop, goes_on, shared or Shared()))


def _work(
    directory: RunDirectory,
    scenario: Scenario,
    backend: Backend,
    events: Events,
    stop: StopRequest,
    resume: bool,
    shared: Shared,
) -> Steps:
    # A backend that other runs have used before has compiled for them.
    sections, others = scenario.sections, backend.trace_seconds
    shown = installed_versions(("phinverse", "phiflow", backend.name))
    versions = " · ".join(f"{name} {version}" for name, version in shown.items())
    events.message(f"{versions} · {backend.device} · physics {backend.physics_dtype}, network {backend.network_dtype}")
    events.message(f"{scenario.name} in {directory.path}")
    attributes = _attributes(scenario)
    built = with_seed(shared.built, sections, backend) if shared.built else build(sections, backend, read_samples)
    shared.built = built
    if built.trainer is None:
        try:
            simulate(sections, built, directory, attributes, events, stop, resume)
        finally:
            _write_metrics(directory, attributes, backend.trace_seconds - others, monitors.descriptions(built.problem))
        return {}
    session = Session(sections, built, directory, attributes, events, stop, shared.programs, others)
    try:
        yield from session.updates(resume)
        session.write_fields(session.state)
    finally:
        session.close()
        if session.together:
            details = record.read(directory.record).details
            record.update(directory.record, details={**details, record.TOGETHER: session.together})
        described = {
            **(sections.update.plugin.metrics if sections.update else {}),
            **monitors.descriptions(built.problem),
        }
        _write_metrics(directory, attributes, session.compile_seconds, described)
    return {name: backend.numpy(value) for name, value in session.state.params.items()}


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
