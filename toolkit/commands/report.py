"""`phinverse report`: one self-contained HTML page of a run or sweep."""

from __future__ import annotations

from pathlib import Path

from toolkit.commands import console
from toolkit.runs import record
from toolkit.runs.directory import RECORD_FILE, SWEEP_FILE, find
from toolkit.runs.report.page import report as write


def report(directory: str, out: Path) -> int:
    """Exit code 0; the path of the page on stdout."""
    path = find(directory, out)
    console.result(str(write(path)))
    console.hint(_next(path))
    return 0


def _next(path: Path) -> str:
    """Of a sweep its comparison, of a run what it lacks."""
    if (path / SWEEP_FILE).is_file():
        return f"phinverse compare {path}"
    status = record.observed(record.read(path / RECORD_FILE)).status
    return f"phinverse {'resume' if status == 'interrupted' else 'plot'} {path}" + (" --film" * (status == "done"))
