"""Diagnoses a scenario before training: spectra, gradients, saturation and costs, in a directory of their own.

first batch → singular values (float64) → adjoints → saturation → timed updates (the scenario's precision)
            → advice → scenario.yaml, diagnosis.json, diagnosis.nc, plots/spectrum.png
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.core.backend import Backend, choose_device, devices, using
from toolkit.core.errors import DivergenceError, ScenarioError
from toolkit.core.solves import run_errors
from toolkit.runs import atomic
from toolkit.runs.datasets import global_attributes, write_dataset
from toolkit.runs.diagnosis_files import dataset_of, spectrum_figure
from toolkit.runs.directory import RunDirectory, create
from toolkit.runs.events import SILENT, Events
from toolkit.runs.plots import save_figure
from toolkit.runs.provenance import collect
from toolkit.runs.samples import read_samples
from toolkit.scenario import kinds
from toolkit.scenario.alternatives import Alternative, alternatives
from toolkit.scenario.build import build
from toolkit.scenario.scenario import Scenario
from toolkit.scenario.sweep import expand
from toolkit.training import update_cost
from toolkit.training.advice import Candidate, Findings, Verdict, judge, remarks
from toolkit.training.calibration import calibrate
from toolkit.training.diagnosis import saturation, step_gradients
from toolkit.training.spectra import Sizes, count, sizes, spectra
from toolkit.training.update_cost import Cost, Setting

PREFIX = "diagnose-"
SUMMARY = "Conditioning of an inverse problem at its initial parameters: {}"
PATIENCE = 3.0
"""Seconds that an update may take by the counts, to be timed."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found about one scenario."""

    path: Path
    scenario: Scenario
    cell: str | None
    """The cell of a sweep that was looked at."""
    batch: int
    """Samples of the first batch."""
    findings: Findings
    verdicts: tuple[Verdict, ...]
    """On what the scenario's checks accept, best first."""
    refused: tuple[Candidate, ...]
    remarks: tuple[str, ...]
    own: str
    """The candidate that the scenario itself names."""


def diagnose(
    scenario: Scenario,
    out: str | Path = "runs",
    samples: int | None = None,
    events: Events = SILENT,
    command: tuple[str, ...] | None = None,
) -> Diagnosis:
    """Diagnose a scenario (of a sweep: its first cell) in a new directory below `out`."""
    first = expand(scenario)[0]
    cell = first.cell_id if scenario.sections.sweep else None
    scenario = first.scenario
    if scenario.sections.update is None:
        raise ScenarioError("update: nothing is learned, so nothing to diagnose; give `controls` and `update`")
    if samples is not None and samples < 1:
        raise ScenarioError(f"--samples: expected 1 or more, got {samples}")
    options = scenario.sections.run
    choose_device(options.device, devices(options.backend), options.backend)
    with _directory(Path(out), scenario) as directory, run_errors(scenario.sections.pde.type):
        if cell is not None:
            events.message(f"a sweep: its first cell is diagnosed, {cell}")
        findings, batch = _findings(scenario, samples, events)
        known = alternatives(scenario)
        candidates = _candidates(scenario, known, findings.sizes, batch, events)
        done = Diagnosis(
            path=directory.path,
            scenario=scenario,
            cell=cell,
            batch=batch,
            findings=findings,
            verdicts=tuple(judge(findings, candidates)),
            refused=tuple(c for c in candidates if c.refused is not None),
            remarks=tuple(remarks(findings, kinds.names("update rule"))),
            own=next(c.name for c in candidates if c.own),
        )
        _write(directory, done, command or tuple(sys.argv))
    return done


@contextmanager
def _directory(out: Path, scenario: Scenario) -> Iterator[RunDirectory]:
    """A new directory, which does not stay where nothing came of it."""
    directory = create(out, scenario.name, scenario.content_hash(), prefix=PREFIX)
    try:
        yield directory
    except BaseException:
        if not any(directory.path.iterdir()):
            directory.path.rmdir()
        raise


def _findings(scenario: Scenario, samples: int | None, events: Events) -> tuple[Findings, int]:
    """(findings, size of the first batch), all in float64."""
    options = scenario.sections.run
    with using(options.backend, options.device, "float64", "float64") as backend:
        events.message(_versions(backend))
        built = build(scenario.sections, backend, read_samples)
        assert built.batches is not None
        # Jacobians take more than one backward pass through the steps, which are therefore kept.
        problem = replace(built.problem, rollout=replace(built.problem.rollout, rematerialise=None))
        params, batch = built.params, built.batches(0)
        buffers = calibrate(problem, params, built.buffers, batch)
        events.message("singular values")
        found = spectra(problem, params, buffers, batch, samples)
        if problem.rollout.steps > 1:
            events.message("gradients per time step")
        steps = step_gradients(problem, params, buffers, batch)
        saturated = saturation(problem, params, buffers, batch)
        return Findings(sizes(problem, params), found, steps, saturated), count(batch)


def _versions(backend: Backend) -> str:
    wanted = ("phinverse", "phiflow", backend.name)
    versions = " · ".join(f"{name} {v}" for name, v in collect(()).versions.items() if name in wanted)
    return f"{versions} · {backend.device} · singular values in float64"


# --- costs --------------------------------------------------------------------------------------------------------


def _candidates(
    scenario: Scenario, known: list[Alternative], size: Sizes, batch: int, events: Events
) -> list[Candidate]:
    """Rules with their costs; timed are the scenario's own, dp, hig and the solver made for the PDE."""
    events.message("updates of some rules, timed")
    dp = next((a for a in known if a.rule == "dp" and a.scenario is not None), None)
    unit = None if dp is None else _seconds_if_sound(dp, events)
    rate = update_cost.multiplications_per_second()
    result, special = [], next((a.solver for a in known if a.special and a.scenario is not None), None)
    for alternative in known:
        cost = None
        if alternative.scenario is not None and unit is not None:
            cost = _counted(alternative.scenario, Setting(size, batch, unit, rate))
            made_for_it = alternative.special and alternative.solver == special
            wanted = alternative.own or alternative.rule == "hig" or made_for_it
            if alternative is dp:
                cost = Cost(1.0, "timed", unit)
            elif wanted and (alternative.own or (cost is not None and cost.ratio * unit < PATIENCE)):
                seconds = _seconds_if_sound(alternative, events)
                cost = None if seconds is None else Cost(seconds / unit, "timed", seconds)
        result.append(
            Candidate(
                alternative.rule, alternative.solver, alternative.special, alternative.refused, cost, alternative.own
            )
        )
    return result


def _counted(scenario: Scenario, setting: Setting) -> Cost | None:
    update = scenario.sections.update
    assert update is not None
    solver = update.inverse_solver
    options = update.options if solver is None else solver.options
    return update_cost.count_cost(update.type, None if solver is None else solver.type, options, setting)


def _seconds_if_sound(alternative: Alternative, events: Events) -> float | None:
    """Seconds of an update; None where that diverges, which says nothing about the others."""
    assert alternative.scenario is not None
    try:
        return _seconds(alternative.scenario)
    except DivergenceError as error:
        events.message(f"{alternative.rule} diverged while it was timed: {error}")
        return None


def _seconds(scenario: Scenario) -> float:
    """Seconds of an update as the scenario would run it."""
    sections = scenario.sections
    options = sections.run
    with using(options.backend, options.device, sections.physics_precision, sections.network_precision) as backend:
        built = build(sections, backend, read_samples)
        assert built.trainer is not None
        assert built.batches is not None
        return update_cost.seconds_per_update(built.trainer, built.params, built.buffers, built.batches(0))


# --- files --------------------------------------------------------------------------------------------------------


def _write(directory: RunDirectory, done: Diagnosis, command: tuple[str, ...]) -> None:
    header = done.scenario.sections.header
    attributes = global_attributes(
        title=header.name,
        summary=SUMMARY.format(header.description or header.name),
        scenario=done.scenario.to_yaml(),
        provenance=collect(command),
        references=header.references,
        remarks=" ".join(done.remarks),
    )
    costs = {v.candidate.name: v.candidate.cost for v in done.verdicts if v.candidate.cost is not None}
    dataset = dataset_of(done.findings, costs, done.scenario.sections.time.dt, attributes)
    atomic.write_text(directory.scenario, done.scenario.to_yaml())
    atomic.write_json(directory.path / "diagnosis.json", finite(plain(done)))
    write_dataset(directory.path / "diagnosis.nc", dataset)
    directory.plots.mkdir(exist_ok=True)
    save_figure(spectrum_figure(dataset), directory.plots / "spectrum.png")


def plain(done: Diagnosis) -> dict[str, Any]:
    """All numbers and words as plain data."""
    found = done.findings
    return {
        "scenario": done.scenario.name,
        "cell": done.cell,
        "path": str(done.path),
        "batch": done.batch,
        "sizes": asdict(found.sizes),
        "spectra": {part: _spectrum(found, part) for part in ("network", "physics", "total")},
        "steps": None
        if found.steps is None
        else {
            "flow": found.flow,
            "growth": found.steps.growth,
            "total": found.steps.total,
            "state": found.steps.state.tolist(),
            "control": None if found.steps.control is None else found.steps.control.tolist(),
        },
        "saturation": [asdict(s) for s in found.saturation],
        "rules": [{**_plain(v.candidate), "grade": v.grade, "reason": v.reason} for v in done.verdicts],
        "refused": [{"rule": c.rule, "solver": c.solver, "reason": c.refused} for c in done.refused],
        "remarks": list(done.remarks),
    }


def _spectrum(found: Findings, part: str) -> dict[str, Any] | None:
    spectrum = getattr(found.spectra, part)
    if spectrum is None:
        return None
    numbers = {name: getattr(spectrum, name) for name in ("rows", "columns", "rank", "condition", "typical", "decades")}
    return {**numbers, "samples": samples_of(found, part), "values": spectrum.values.tolist()}


def _plain(candidate: Candidate) -> dict[str, Any]:
    cost = None if candidate.cost is None else asdict(candidate.cost)
    return {"rule": candidate.rule, "solver": candidate.solver, "cost": cost}


def samples_of(found: Findings, part: str) -> int:
    """Samples that a spectrum was taken of; 0 where there is none."""
    spectrum = getattr(found.spectra, part)
    if spectrum is None:
        return 0
    if part == "physics":
        return int(spectrum.values.shape[0])
    return spectrum.rows // (found.sizes.controls if part == "network" else found.sizes.outputs)


def finite(value: Any) -> Any:
    """Plain data with what JSON lacks (NaN, infinities) as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list) else value
