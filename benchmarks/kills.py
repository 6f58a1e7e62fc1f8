"""`kill -9` at random moments: of a batch, of its processes, of single runs; nothing that was finished is lost.

    python benchmarks/kills.py [--kills 100] [--minutes 120] [--seed 0]

A batch of eight members (networks on torch and JAX, a sweep, a direct optimisation that writes frames, a streamed
simulation) is done once undisturbed. Then it is started again and again in another folder, and each time something is
killed: the batch alone, one of its processes, or everything at once; in between single runs of the same scenarios, and
a sweep of four seeds side by side, are started, killed, resumed, each eight times. After each kill every file there is
must be readable; the results of all that are done in the end are compared with the undisturbed ones, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from toolkit.runs import atomic, checkpoint, record
from toolkit.runs.batch_process import environment
from toolkit.runs.metrics import read_metrics

PHINVERSE = Path(sys.executable).with_name("phinverse")
CLOCKS = {"wall_seconds", "step_seconds", "compile_seconds"}
TARGETS = ("batch", "process", "all")
KILLS_PER_ROUND = 8
RUN = """\
name: {name}
run: {{backend: {backend}, device: cpu, precision: float64}}
"""
HEAT = """\
grid: {cells: {x: 16, y: 8}, extent: {x: 64, y: 64}}
pde: {type: heat, diffusivity: 8.0}
"""
LEARN = """\
controls: {initial_temperature: {acts_on: initial.temperature}}
data: {type: hot_rectangles, validation: 8, seed: 1}
networks: {estimator: {type: conv_net, layers: [8, 8], output: initial_temperature, batch_norm: true}}
loss: l2
update: {type: sip, inverse_solver: damped_spectral, optimizer: {type: adam, learning_rate: 1e-3}}
train: {steps: 400, batch_size: 8, validate_every: 50, checkpoint_every: 5}
output: {plots: false}
"""
SINE = """\
pde: {type: sine, xi: 8}
controls: {preimage: {acts_on: initial.x}}
data: {type: uniform, reference: false, validation: 64, seed: 1}
networks: {inverter: {type: mlp, layers: [16, 16], output: preimage}}
loss: {type: l2, on: final.y}
update: {type: sip, inverse_solver: analytic_newton, optimizer: {type: adam, learning_rate: 1e-3}}
train: {steps: 1500, batch_size: 32, validate_every: 50, checkpoint_every: 20}
output: {plots: false}
"""
OPTIMISE = """\
controls: {initial_temperature: {acts_on: initial.temperature, initial: 0.0}}
data: {type: hot_rectangles, validation: 4, seed: 1}
loss: l2
update: {type: dp, optimizer: {type: sgd, learning_rate: 1e-3}}
train: {steps: 600, validate_every: 100, checkpoint_every: 10}
output: {plots: false}
"""
SIMULATE = """\
time: {steps: 2000, dt: 0.01}
data: {type: cosine, validation: 2}
output: {plots: true}
"""
SWEEP = "sweep: {update.optimizer.learning_rate: [1e-3, 3e-4], run.seed: [0, 1]}\n"
TOGETHER = "learn_together"
"""The scenario whose members are compared with those of the batch, and are otherwise done by `run --together`."""
SCENARIOS = {
    "learn_torch": ("torch", HEAT + LEARN),
    "learn_jax": ("jax", SINE),
    "learn_sweep": ("jax", SINE.replace("1500", "800") + SWEEP),
    "optimise": ("torch", HEAT + OPTIMISE),
    "simulate": ("jax", HEAT + SIMULATE),
    TOGETHER: ("jax", SINE.replace("1500", "10000") + "sweep: {run.seed: [0, 1, 2, 3]}\n"),
}


@dataclass
class Count:
    """What has been done so far."""

    kills: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    """Status of what was running when it was killed."""
    compared: int = 0
    rounds: int = 0
    checked: int = 0


def write_scenarios(folder: Path) -> list[Path]:
    """The scenarios as files."""
    paths = []
    for name, (backend, text) in SCENARIOS.items():
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(RUN.format(name=name, backend=backend) + text)
    return paths


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a session of its own."""
    command = [str(PHINVERSE), *map(str, arguments), "--quiet"]
    return subprocess.Popen(
        command,
        env=environment(1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill(pid: int) -> None:
    """`kill -9`, also of one that has just ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_until_gone(pids: Iterable[int]) -> None:
    """Wait for the processes that a killed batch leaves behind: they checkpoint and end by themselves."""
    deadline = time.monotonic() + 120
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"process {pid} does not end")
            time.sleep(0.05)


def runs(folder: Path) -> list[Path]:
    """Directories of runs below a folder."""
    return sorted(path.parent for path in folder.rglob("run.json"))


def begun(folder: Path) -> Path | None:
    """What can be resumed: the sweep below a folder, or the run."""
    sweeps = [path.parent for path in folder.rglob("sweep.json")]
    return next(iter([*sweeps, *runs(folder)]), None)


def check_readable(folder: Path) -> int:
    """Read every file below a folder as its format wants it; how many there are."""
    checked = 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.name == "metrics.jsonl":
            read_metrics(path)
        elif path.suffix == ".json":
            atomic.read_json(path)
        elif path.suffix == ".nc":
            with xr.open_dataset(path) as dataset:
                dataset.load()
        elif path.name == "scenario.yaml":
            assert path.read_text().strip()
        checked += 1
    for state in folder.rglob("state.json"):
        checkpoint.load(state.parent)
    return checked


def compare(one: Path, other: Path) -> int:
    """Compare all runs and sweeps below two folders bit for bit, but for the times; how many datasets."""
    compared = 0
    for path in sorted(other.rglob("*.nc")):
        with xr.open_dataset(path) as a, xr.open_dataset(one / path.relative_to(other)) as b:
            assert set(a.variables) == set(b.variables), path
            for name in set(a.variables) - CLOCKS:
                np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=f"{path}: {name}")
        compared += 1
    return compared


def working(folder: Path, running: subprocess.Popen[str]) -> bool:
    """Wait until some run writes metrics; False if everything was over before."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    while running.poll() is None:
        now = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
        if any(before.get(path) != time_ for path, time_ in now.items()):
            return True
        time.sleep(0.01)
    return False


def strike(running: subprocess.Popen[str], folder: Path, target: str, chance: random.Random) -> bool:
    """Kill at a random moment; False if the command ended before."""
    if chance.random() < 0.25:
        time.sleep(chance.uniform(0.0, 5.0))
    elif working(folder, running):
        time.sleep(chance.uniform(0.0, 3.0 if target == "single" else 8.0))
    workers = children(running.pid)
    if running.poll() is not None or (target == "process" and not workers):
        return False
    if target == "process":
        kill(chance.choice(workers))
        # The batch goes on with the others. Half the time it is then stopped, half the time it may finish.
        if chance.random() < 0.5:
            running.send_signal(signal.SIGTERM)
    else:
        for pid in (running.pid, *(workers if target == "all" else ())):
            kill(pid)
    running.communicate()
    wait_until_gone(workers)
    return True


def disturb(count: Count, arguments: list[object], folder: Path, targets: Sequence[str], chance: random.Random) -> None:
    """Start a command and kill something, again and again, KILLS_PER_ROUND times; then let it end."""
    again, kills = list(arguments), 0
    while True:
        target = chance.choice(targets)
        running = start(*again)
        if kills < KILLS_PER_ROUND and strike(running, folder, target, chance):
            kills += 1
            count.kills[target] += 1
            for path in runs(folder):
                status = record.observed(record.read(path / "run.json")).status
                assert status in ("done", "interrupted"), (path, status)
                count.found[status] += 1
            count.checked += check_readable(folder)
            if target == "single" and (known := begun(folder)):
                if all(record.read(path / "run.json").status == "done" for path in runs(folder)):
                    return
                again = ["resume", known]
            print(f"{sum(count.kills.values()):4d} kills", file=sys.stderr, flush=True)
            continue
        _, errors = running.communicate()
        if running.returncode == 0:
            return
        raise SystemExit(f"{' '.join(map(str, again))} ended with {running.returncode}:\n{errors}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=120.0, help="no new round after this time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, count, began = random.Random(options.seed), Count(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_scenarios(folder)
        whole = folder / "whole"
        undisturbed = start("batch", *paths, "--workers", 2, "--out", whole)
        _, errors = undisturbed.communicate()
        if undisturbed.returncode != 0:
            raise SystemExit(errors)
        while sum(count.kills.values()) < options.kills and time.monotonic() - began < 60 * options.minutes:
            count.rounds += 1
            out = folder / f"round{count.rounds}"
            out.mkdir()
            if count.rounds % 2 == 0:
                # One scenario by itself: the cells of the other sweep are known by the batch only.
                path = chance.choice([p for p in paths if "sweep" not in p.name])
                more = ["--together"] if path.stem == TOGETHER else []
                command: list[object] = ["run", path, *more, "--out", out, "--name", "it"]
                disturb(count, command, out, ["single"], chance)
                (found,) = (whole / path.stem).iterdir()
                count.compared += compare(found, out / path.stem / "it")
            else:
                batch = [p for p in paths if p.stem != TOGETHER]
                disturb(count, ["batch", *batch, "--workers", 2, "--out", out], out, TARGETS, chance)
                count.compared += compare(whole, out)
            statuses = {record.read(path / "run.json").status for path in runs(out)}
            assert statuses == {"done"}, statuses
    kills = ", ".join(f"{number} {target}" for target, number in sorted(count.kills.items()))
    print(f"{sum(count.kills.values())} kills ({kills}) in {count.rounds} rounds, {time.monotonic() - began:.0f} s")
    print(f"runs found interrupted: {count.found['interrupted']}, done: {count.found['done']}")
    print(f"files read after kills: {count.checked}")
    print(f"datasets equal to the undisturbed ones, bit for bit: {count.compared} of {count.compared}")


if __name__ == "__main__":
    main()
