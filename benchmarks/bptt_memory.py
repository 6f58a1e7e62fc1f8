"""Peak memory of one update through a long rollout, with and without rematerialisation.

    python benchmarks/bptt_memory.py [--backends torch jax] [--steps 1000 4000 10000] [--figure FILE.png]

The cart-pole with batch 64 and a network of 100 and 100 units at every step, `flow: full`, float32. Each row is a
process of its own on one core; memory is the largest resident set minus that before the first update, which holds the
libraries. A backward pass that keeps everything grows with T, one that keeps √T states and computes √T steps again
(`run.rematerialise: auto`) with √T, until what does not depend on T is all that is left.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from toolkit import load_scenario
from toolkit.core.backend import using
from toolkit.scenario.build import build

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios" / "cart_pole.yaml"
WAYS: dict[str, Any] = {"kept": None, "auto": "auto"}


def peak() -> float:
    """Largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(backend_name: str, steps: int, way: str) -> dict[str, float]:
    """Memory and time of an update in this process; the second update is timed."""
    overrides = {
        "time.steps": steps,
        # A second in all, whatever the number of steps: the motion stays the same.
        "time.dt": 1 / steps,
        "update.flow": "full",
        "train.batch_size": 64,
        "run.backend": backend_name,
        "run.rematerialise": WAYS[way],
    }
    with using(backend_name, "cpu", "float32", "float32") as backend:
        made = build(load_scenario(SCENARIO, overrides).sections, backend, lambda path: {})
        trainer, batches = made.trainer, made.batches
        assert trainer is not None
        assert batches is not None
        state, batch, before = trainer.start(made.params, made.buffers), batches(0), peak()
        state, _ = trainer.step(state, batch)
        start = time.perf_counter()
        trainer.step(state, batch)
        return {"megabytes": peak() - before, "seconds": time.perf_counter() - start}


def alone(backend: str, steps: int, way: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", backend, str(steps), way]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(found: dict[tuple[str, str], list[tuple[int, float]]], path: Path) -> None:
    """Memory by number of steps, both axes logarithmic."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axis = figure.subplots()
    for (backend, way), points in found.items():
        style = "-o" if way == "auto" else "--s"
        label = f"{backend}, {'√T rematerialised' if way == 'auto' else 'all kept'}"
        axis.loglog(*zip(*points, strict=True), style, label=label, ms=4)
    axis.set(xlabel="steps T", ylabel="peak memory of an update in MB")
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["torch", "jax"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 4000, 10000])
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one[0], int(chosen.one[1]), chosen.one[2])))
        return
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    print("backend | way  |  steps |      MB | s per update")
    for backend in chosen.backends:
        for way in WAYS:
            for steps in chosen.steps:
                row = alone(backend, steps, way)
                found.setdefault((backend, way), []).append((steps, row["megabytes"]))
                print(
                    f"{backend:7} | {way:4} | {steps:6d} | {row['megabytes']:7.0f} | {row['seconds']:.2f}", flush=True
                )
    if chosen.figure:
        draw(found, chosen.figure)


if __name__ == "__main__":
    main()
