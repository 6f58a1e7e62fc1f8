"""`phinverse predict`: apply the networks of a run to the targets in a netCDF file."""

from __future__ import annotations

from pathlib import Path

from toolkit.commands import console
from toolkit.core.errors import ScenarioError
from toolkit.runs import predict as runs
from toolkit.runs.directory import SWEEP_FILE, find


def predict(
    run: str,
    out: Path,
    source: Path,
    output: Path,
    batch: int | None,
    backend: str | None,
    device: str | None,
    quiet: bool,
) -> int:
    """Exit code 0; what goes wrong is raised. The path of the file goes to stdout."""
    path = find(run, out)
    if (path / SWEEP_FILE).is_file():
        raise ScenarioError(f"{path} is a sweep; name one of its cells, `phinverse list runs` shows them")
    with console.progress(quiet) as events:
        done = runs.predict(path, source, output, batch, backend, device, events)
    if not quiet:
        error = "" if done.control_error is None else f"  control_error {done.control_error:.4g}"
        console.say(f"{done.samples} samples in {done.seconds:.3g} s  loss {done.loss:.4g}{error} (means)")
    console.result(str(done.path))
    if not quiet:
        console.hint(f"python -c \"import xarray; print(xarray.open_dataset('{done.path}'))\"")
    return 0
