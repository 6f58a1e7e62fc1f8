"""`phinverse plot`: the pictures of a run (of every cell of a sweep), and a film of its fields."""

from __future__ import annotations

from pathlib import Path

from toolkit.commands import console
from toolkit.core.errors import ScenarioError
from toolkit.runs.directory import find, members
from toolkit.runs.film import write_film
from toolkit.runs.plots import write_plots


def plot(run: str, out: Path, film: bool) -> int:
    """Exit code 0; paths of the pictures on stdout."""
    directories = members(find(run, out))
    if not directories:
        raise ScenarioError(f"{run}: no cell of this sweep has run yet")
    for directory in directories:
        paths = write_plots(directory)
        if film:
            paths.append(write_film(directory))
        for path in paths:
            console.result(str(path))
    console.hint(f"python -c \"import toolkit; print(toolkit.open_run('{directories[0]}').fields)\"")
    return 0
