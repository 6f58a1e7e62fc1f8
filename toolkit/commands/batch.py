"""`phinverse batch`: many scenarios and sweeps in parallel processes; run again, it does what is missing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.commands import console
from toolkit.commands.locate import scenario_path
from toolkit.commands.run import EXIT_MEMBERS_FAILED, load
from toolkit.core.errors import MissingError, ScenarioError
from toolkit.scenario.scenario import Scenario

RETRY = "--retry-failed"


def batch(
    paths: list[str],
    overrides: list[str],
    short: Mapping[str, Any],
    steps: int | None,
    workers: int | None,
    scheduler: str | None,
    out: Path,
    retry_failed: bool,
    quiet: bool,
) -> int:
    """Exit code 0, 3 where members failed, 75 or 130 where it was stopped; what is wrong with scenarios is raised."""
    if scheduler is not None and workers is not None:
        raise ScenarioError("--workers is for processes on this machine; with --scheduler the cluster has its own")
    scenarios, missing = _load_all(paths, overrides, short, steps)
    # Imported here: the runs layer loads xarray and matplotlib, which wrong scenarios need not wait for.
    from toolkit.commands.batch_view import view
    from toolkit.runs.batch import run_batch

    cluster = None if scheduler is None else _cluster(scheduler)
    with view(quiet) as events:
        ended = run_batch(scenarios, out, workers, retry_failed, events, cluster=cluster)
    for path in ended.paths:
        console.result(str(path))
    _explain(ended, missing)
    failed = len(ended.failed) + len(missing)
    counts = [f"{len(ended.done)} of {len(ended.members)} members done"]
    counts += [f"{failed} failed"] if failed else []
    console.say(", ".join(counts))
    console.hint(_next(ended, failed))
    if ended.stopped is not None:
        return ended.stopped
    return EXIT_MEMBERS_FAILED if failed or ended.problems else 0


def _load_all(
    paths: list[str], overrides: list[str], short: Mapping[str, Any], steps: int | None
) -> tuple[list[Scenario], dict[str, str]]:
    """(scenarios, why a file cannot be loaded here); the findings of all files together are raised."""
    scenarios: list[Scenario] = []
    problems: list[str] = []
    missing: dict[str, str] = {}
    for text in paths:
        try:
            scenarios.append(load(scenario_path(text), overrides, short, steps))
        except ScenarioError as error:
            problems += error.problems
        except MissingError as error:
            # The scenario may be right: a plugin that is broken or not installed must not cost the others.
            missing[text] = str(error)
    if problems:
        raise ScenarioError(*problems)
    if not scenarios:
        raise MissingError("\n".join(missing.values()))
    return scenarios, missing


def _cluster(address: str) -> Any:
    """The Dask cluster of a scheduler."""
    try:
        from toolkit.runs.batch_cluster import DaskCluster
    except ImportError as error:
        raise MissingError(
            f"--scheduler: dask.distributed is not installed ({error}); pip install 'phinverse[cluster]'"
        ) from error
    return DaskCluster(address)


def _explain(ended: Any, missing: Mapping[str, str]) -> None:
    """Every failure in full."""
    for path, reason in missing.items():
        console.say(f"\n{path} failed\n  {reason}")
    for state in ended.failed:
        console.say(f"\n{state.member.name} {state.status}: {state.member.path}")
        for line in [*(state.reason or "").splitlines(), *(state.trace or "").splitlines()]:
            console.say(f"  {line}")
    for problem in ended.problems:
        console.say(f"\n{problem}")
    if missing or ended.failed or ended.problems:
        console.say("")


def _next(ended: Any, failed: int) -> str:
    """The next useful command."""
    arguments = [word for word in sys.argv[1:] if word != RETRY]
    again = shlex.join(["phinverse", *arguments]) if arguments[:1] == ["batch"] else "phinverse batch …"
    if ended.stopped is not None:
        return again
    if failed or ended.problems:
        recorded = any(state.status == "failed" and not state.crashed for state in ended.failed)
        return f"{again} {RETRY}" if recorded else again
    if len(ended.members) > 1:
        return shlex.join(["phinverse", "compare", *map(str, ended.paths)])
    return f"phinverse plot {ended.paths[0]}"
