"""`phinverse resume`: go on from the last checkpoint."""

from __future__ import annotations

from pathlib import Path

from toolkit.commands import console
from toolkit.runs import execute
from toolkit.runs.directory import find


def resume(run: str, out: Path, quiet: bool) -> int:
    """Exit code 0; failures are raised."""
    with console.progress(quiet) as events:
        done = execute.resume(find(run, out), events)
    console.result(str(done.path))
    if not quiet:
        console.hint(f"phinverse plot {done.path}")
    done.stored.close()
    return 0
