"""Memory of a simulation against the number of frames it has written, for both formats of the fields.

    python benchmarks/streaming.py [--frames 20000] [--formats netcdf zarr] [--backend torch] [--out DIR] [--figure PNG]

The heat equation on 256² cells in float32, every time step written: 20 000 frames are 5.2 GB. Each format runs in a
process of its own, with every other setting as shipped; it says the resident memory at every 1/100 of the frames. The
output is deleted afterwards. `--out` chooses the disk it is written to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from matplotlib.figure import Figure

from toolkit import load_scenario, run
from toolkit.runs.events import Events

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios" / "heat_forward.yaml"
CELLS = 256
POINTS = 100
"""Samples of the memory."""


def status(key: str) -> float:
    """A size in `/proc/self/status`, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key + ":"))


def one(form: str, frames: int, backend: str, out: Path) -> None:
    """Run in this process; a JSON line per sample, and one about the whole."""
    overrides = {
        "grid.cells": {"x": CELLS, "y": CELLS},
        "time": {"steps": frames - 1, "dt": 1e-3},
        "data.validation": 1,
        "output": {"samples": 1, "every": 1, "format": form},
        "run.backend": backend,
        "run.precision": "float32",
    }
    every, start = max(1, frames // POINTS), time.perf_counter()

    def progress(step: int, steps: int, record: object) -> None:
        if step % every == 0 or step == steps:
            print(json.dumps([step + 1, status("VmRSS"), time.perf_counter() - start]), flush=True)

    done = run(load_scenario(SCENARIO, overrides), out=out, name=form, events=Events(progress=progress))
    seconds = time.perf_counter() - start
    done.stored.close()
    files = [path for path in done.path.glob("fields.*/**/*") if path.is_file()] + [done.path / "fields.nc"]
    size = sum(path.stat().st_size for path in files if path.is_file()) / 1e9
    whole = {"size": size, "files": len(files), "peak": status("VmHWM"), "seconds": seconds}
    print(json.dumps(whole), flush=True)


def alone(form: str, frames: int, backend: str, folder: Path | None) -> tuple[list[list[float]], dict[str, float]]:
    """`one` in a process of its own: samples of (frames, MB, seconds), and figures of the whole."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, __file__, "--one", form, str(frames), backend, out]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    *points, whole = [json.loads(line) for line in done.stdout.splitlines()]
    return points, whole


def draw(found: dict[str, list[list[float]]], path: Path) -> None:
    """Resident memory against the frames written."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for form, points in found.items():
        axes.plot([frames for frames, _, _ in points], [memory for _, memory, _ in points], label=form, linewidth=1.4)
    axes.set(xlabel=f"frames written, {CELLS}² cells, float32", ylabel="resident memory [MB]")
    axes.set_ylim(bottom=0)
    axes.grid(linewidth=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--formats", nargs="+", default=["netcdf", "zarr"])
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--out", type=Path, help="folder for the output, the system's temporary one if left out")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        form, frames, backend, out = chosen.one
        one(form, int(frames), backend, Path(out))
        return
    found: dict[str, list[list[float]]] = {}
    print("format |  frames |     MB | frames per second")
    for form in chosen.formats:
        found[form], whole = alone(form, chosen.frames, chosen.backend, chosen.out)
        for frames, memory, seconds in found[form][:: POINTS // 10]:
            print(f"{form:6} | {frames:7d} | {memory:6.0f} | {frames / seconds:6.0f}")
        rate = chosen.frames / whole["seconds"]
        print(
            f"{form:6} | whole run: {whole['size']:.2f} GB in {whole['files']:.0f} files, peak {whole['peak']:.0f} MB, "
            f"{whole['seconds']:.0f} s, {rate:.0f} frames per second",
            flush=True,
        )
    if chosen.figure:
        draw(found, chosen.figure)


if __name__ == "__main__":
    main()
