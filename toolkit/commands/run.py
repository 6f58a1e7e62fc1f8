"""`phinverse run`: compile and run one scenario, or all cells of its sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.commands import console
from toolkit.commands.locate import scenario_path
from toolkit.commands.validate import description
from toolkit.core.errors import ScenarioError
from toolkit.scenario.load import load_scenario
from toolkit.scenario.scenario import Scenario
from toolkit.scenario.sweep import expand

EXIT_MEMBERS_FAILED = 3


def run(
    path: str,
    overrides: list[str],
    short: Mapping[str, Any],
    steps: int | None,
    out: Path,
    name: str | None,
    dry_run: bool,
    together: bool,
    quiet: bool,
) -> int:
    """Exit code 0, or 3 where members of a sweep failed; other failures are raised."""
    scenario = load(scenario_path(path), overrides, short, steps)
    if together and not scenario.sections.sweep:
        raise ScenarioError(f"--together: {path} has no sweep; add one over run.seed, or leave the option out")
    if dry_run:
        console.result(description(scenario))
        for cell in expand(scenario) if scenario.sections.sweep else ():
            console.result(f"  {cell.cell_id}")
        console.hint(f"phinverse run {path}")
        return 0
    # Imported here: the runs layer loads xarray and matplotlib, which a dry run does not need.
    from toolkit.runs import execute

    with console.progress(quiet) as events:
        if scenario.sections.sweep:
            return sweep_summary(execute.run_sweep(scenario, out, name, events, together=together))
        done = execute.run(scenario, out, name, events)
    if not quiet:
        _summary(done)
    console.result(str(done.path))
    if not quiet:
        console.hint(f"phinverse plot {done.path}")
    done.stored.close()
    return 0


def load(path: Path, overrides: list[str], short: Mapping[str, Any], steps: int | None) -> Scenario:
    """The scenario of a file with what the command line changes; `steps`: updates, or those of a plain simulation."""
    given = [*overrides, *(f"{key}={value}" for key, value in short.items() if value is not None)]
    if steps is None:
        return load_scenario(path, given)
    learns = load_scenario(path, given).sections.update is not None
    return load_scenario(path, [*given, f"{'train' if learns else 'time'}.steps={steps}"])


def sweep_summary(sweep: Any) -> int:
    """Say which cells failed; the exit code."""
    for cell, reason in sweep.failed.items():
        console.say(f"{cell}: {reason}")
    console.say(f"{len(sweep.done)} of {len(sweep.done) + len(sweep.failed)} cells done")
    console.result(str(sweep.path))
    console.hint("phinverse list runs" if not sweep.failed else f"phinverse resume {sweep.path}")
    return EXIT_MEMBERS_FAILED if sweep.failed else 0


def _summary(done: Any) -> None:
    """Last values, where fields and pictures are."""
    metrics = done.metrics
    last = {}
    for variable in console.SHOWN:
        if variable in metrics and (recorded := metrics[variable].dropna("step")).size:
            last[variable] = float(recorded[-1])
    if last:
        console.say(console.numbers(last))
    fields = done.stored.directory.stored_fields
    console.say(f"fields: {fields}" if fields else "no fields: data.validation or output.samples is 0")
    for picture in sorted((done.path / "plots").glob("*")):
        console.say(f"picture: {picture}")
