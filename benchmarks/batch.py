"""What `phinverse batch` gains and costs: 3 rules × 3 ξ × 2 seeds of the sine, one after the other and in parallel.

    python benchmarks/batch.py [--steps 10000] [--backend jax]

All ways start from the shell, with one thread per process:

    run                  the sweep in one process
    run --together       the same, the two seeds of each cell updated by one program
    batch --workers 1    the same, with the batch around it: its overhead
    batch --workers 2    two processes: the speed-up; its numbers are compared with those of the first, bit for bit
    batch --scheduler    a Dask cluster of two worker processes on this machine, which stand ready before the clock runs

Before that, an empty run: one step of gradient descent in two dimensions, whose time is that of the framework.

On the cluster, whose processes are not children of the command, `idle CPU` counts them among the others. `members` is
the sum of the members' own times (`started` to `finished` in run.json), `idle CPU` says how much of the
machine others left to the measurement: with less than 90 % the figures are theirs as much as ours.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import numpy as np
from distributed import Client

from toolkit import open_sweep
from toolkit.runs.batch_process import environment

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios" / "sine.yaml"
PARABOLA = SCENARIO.with_name("parabola_gradient.yaml")
SWEEP = """\
sweep:
  rule:
    sip: {}
    adam: {update: {type: dp, optimizer: {type: adam, learning_rate: 1e-3}}}
    sgd: {update: {type: dp, optimizer: {type: sgd, learning_rate: 1e-2/pde.xi**2/train.batch_size}}}
  pde.xi: [1, 8, 32]
  run.seed: [0, 1]
"""
WAYS = {
    "run": ["run"],
    "together": ["run", "--together"],
    "one": ["batch", "--workers", "1"],
    "two": ["batch", "--workers", "2"],
    "cluster": ["batch", "--scheduler"],
}
QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "5s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
}
"""What Dask does many times a second in each of its processes, at the cost of the members, seldom (docs/batch.md)."""
TIMES = ("wall_seconds", "step_seconds", "compile_seconds")


def scenario(folder: Path, steps: int, backend: str) -> Path:
    """The sweep as a file."""
    path = folder / "sine_batch.yaml"
    train = f"train: {{steps: {steps}, validate_every: {steps}, checkpoint_every: {steps}}}"
    path.write_text(
        f"name: sine_batch\nextends: {SCENARIO}\n{train}\nrun: {{backend: {backend}, device: cpu}}\n"
        f"output: {{plots: false}}\n{SWEEP}"
    )
    return path


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """Address of a Dask scheduler on this machine with so many worker processes of one thread, all connected."""
    dask = str(Path(sys.executable).with_name("dask"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    commands = [[dask, "scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]]
    commands += [[dask, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]] * workers
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        env = {**environment(1), **QUIET}
        started = [subprocess.Popen(command, cwd=folder, env=env, **quiet) for command in commands]
        try:
            with Client(address, timeout=60) as client:
                client.wait_for_workers(workers, timeout=60)
            yield address
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()


def empty_run(folder: Path, backend: str) -> tuple[float, float]:
    """Seconds of a run that does next to nothing: from the shell, and from `started` to `finished` in run.json."""
    path = folder / "empty.yaml"
    path.write_text(
        f"name: empty\nextends: {PARABOLA}\ntrain: {{steps: 1}}\nrun: {{backend: {backend}, device: cpu}}\n"
        "output: {plots: false}\n"
    )
    run, wall, _ = measure(["run", str(path)], folder / "empty")
    return wall, seconds(run)


def measure(arguments: list[str], out: Path) -> tuple[Path, float, float]:
    """(sweep directory, wall seconds, share of the CPU time of all cores that was used by nobody else)."""
    command = [str(Path(sys.executable).with_name("phinverse")), *arguments, "--out", str(out), "--quiet"]
    busy, began, spent = _busy(), time.monotonic(), os.times()
    done = subprocess.run(command, env=environment(1), check=True, capture_output=True, text=True)
    wall = time.monotonic() - began
    ended = os.times()
    own = ended.children_user + ended.children_system - spent.children_user - spent.children_system
    others = max(0.0, _busy() - busy - own)
    return Path(done.stdout.strip()), wall, 1 - others / (wall * (os.cpu_count() or 1))


def _busy() -> float:
    """Seconds that all cores together have worked since the machine was started."""
    user, nice, system = (int(word) for word in Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def members(sweep: Path) -> list[float]:
    """Seconds from start to end of each member."""
    return [seconds(file.parent) for file in sorted(sweep.glob("*/run.json"))]


def seconds(path: Path) -> float:
    """From start to end of a run."""
    run = json.loads((path / "run.json").read_text())
    return (datetime.fromisoformat(run["finished"]) - datetime.fromisoformat(run["started"])).total_seconds()


def same(one: Path, other: Path) -> bool:
    """Whether two sweeps have the same metrics but for the times."""
    with open_sweep(one) as a, open_sweep(other) as b:
        names = [str(name) for name in a.data_vars if name not in TIMES]
        return all(np.array_equal(a[name].values, b[name].values, equal_nan=True) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--backend", default="jax", choices=["torch", "jax"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = str(scenario(folder, options.steps, options.backend))
        wall, inside = empty_run(folder, options.backend)
        print(f"an empty run: {wall:.1f} s from the shell, {inside:.1f} s from its start to its end")
        print(f"18 members of {options.steps} steps, {options.backend}, one thread per process")
        print("way               | wall, s | members, s | wall / members | against run | same numbers | idle CPU")
        first: tuple[Path, float] | None = None
        for way in [WAYS[name] for name in options.ways]:
            with cluster(2) if way[-1] == "--scheduler" else nullcontext() as address:
                more = [] if address is None else [address]
                sweep, wall, idle = measure([way[0], path, *way[1:], *more], folder / "-".join(way))
            first = first or (sweep, wall)
            total = sum(members(sweep))
            print(
                f"{' '.join(way):17s} | {wall:7.1f} | {total:10.1f} | {wall / total:14.3f} | {first[1] / wall:10.2f}x"
                f" | {'yes' if same(first[0], sweep) else 'NO':12s} | {idle:7.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
