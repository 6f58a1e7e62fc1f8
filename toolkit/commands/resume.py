"""`phinverse resume`: go on from the last checkpoint of a run, or finish a sweep."""

from __future__ import annotations

from pathlib import Path

from toolkit.commands import console
from toolkit.commands.run import sweep_summary
from toolkit.runs import execute
from toolkit.runs.directory import SWEEP_FILE, find


def resume(run: str, out: Path, quiet: bool) -> int:
    """Exit code 0, or 3 where cells of a sweep failed; other failures are raised."""
    path = find(run, out)
    with console.progress(quiet) as events:
        if (path / SWEEP_FILE).is_file():
            return sweep_summary(execute.resume_sweep(path, events))
        done = execute.resume(path, events)
    console.result(str(done.path))
    if not quiet:
        console.hint(f"phinverse plot {done.path}")
    done.stored.close()
    return 0
