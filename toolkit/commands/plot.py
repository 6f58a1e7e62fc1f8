"""`phinverse plot`: the pictures of a run (of a sweep and of every cell of it), and a film of its fields."""

from __future__ import annotations

from pathlib import Path

from toolkit.commands import console
from toolkit.core.errors import ScenarioError, StorageError
from toolkit.runs.directory import SWEEP_FILE, find, members
from toolkit.runs.film import write_film
from toolkit.runs.plots import write_plots
from toolkit.runs.sweep_curves import write_sweep_curves
from toolkit.runs.sweep_plot import write_sweep_plot


def plot(run: str, out: Path, film: bool, sample: int) -> int:
    """Exit code 0; paths of the pictures on stdout."""
    found = find(run, out)
    directories = members(found)
    if not directories:
        raise ScenarioError(f"{run}: no cell of this sweep has run yet")
    for directory in directories:
        paths = write_plots(directory)
        if film:
            paths.append(write_film(directory, sample, console.say))
        for path in paths:
            console.result(str(path))
    if (found / SWEEP_FILE).is_file():
        try:
            console.result(str(write_sweep_plot(found)))
            curves = write_sweep_curves(found)
            if curves is not None:
                console.result(str(curves))
        except StorageError as error:
            console.say(f"no picture of the sweep: {error}")
        console.hint(f"python -c \"import toolkit; print(toolkit.open_sweep('{found}'))\"")
        return 0
    console.hint(f"python -c \"import toolkit; print(toolkit.open_run('{directories[0]}').fields)\"")
    return 0
