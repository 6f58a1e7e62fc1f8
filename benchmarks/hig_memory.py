"""Peak memory of an update with half-inverse gradients whose Jacobian would not fit.

    python benchmarks/hig_memory.py [--backends torch jax] [--batch 64] [--outputs 64] [--width 560]

A chain of dense layers with about a million parameters, batch 64 and 64 outputs per sample in float64: a Jacobian of
4096 x 1e6 takes 32 GB. Each way runs in a process of its own on one core: `factored` (exact), `lanczos` (on J Jᵀ from
the factors) and `products` (Lanczos with v -> J Jᵀ v, nothing formed). The physics is one step of the heat equation.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from typing import Any

from toolkit.core.backend import using
from toolkit.core.params import count
from toolkit.scenario.build import build
from toolkit.scenario.load import scenario_from_text

WAYS: dict[str, dict[str, Any]] = {
    "factored": {"update.algorithm": "factored"},
    "lanczos": {"update.algorithm": "lanczos"},
    "products": {"update.memory": 0.1},
}
SCENARIO = """
name: hig_memory
grid: {{cells: {{x: {outputs}}}, extent: {{x: {outputs}}}}}
pde: {{type: heat, diffusivity: 0.05}}
controls: {{start: {{acts_on: initial.temperature}}}}
data: {{type: hot_rectangles, train: {batch}, validation: 1}}
networks: {{f: {{type: mlp, layers: [{width}, {width}, {width}, {width}], activation: tanh, output: start}}}}
loss: l2
update: {{type: hig, optimizer: {{type: sgd, learning_rate: 0.01}}}}
train: {{steps: 2, batch_size: {batch}}}
run: {{backend: {backend}, precision: float64}}
"""


def peak() -> float:
    """Largest resident set of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(options: argparse.Namespace, backend_name: str, way: str) -> None:
    """Two updates in this process; the second is timed."""
    text = SCENARIO.format(**{**vars(options), "backend": backend_name})
    scenario = scenario_from_text(text, WAYS[way])
    with using(backend_name, "cpu", "float64", "float64") as backend:
        built = build(scenario.sections, backend, lambda path: {})
        assert built.trainer is not None
        assert built.batches is not None
        before = peak()
        state = built.trainer.start(built.params, built.buffers)
        state, _ = built.trainer.step(state, built.batches(0))
        start = time.perf_counter()
        _, record = built.trainer.step(state, built.batches(1))
        seconds = time.perf_counter() - start
        shape = f"{options.batch * options.outputs} x {count(built.params)}"
    extra = f"rank {record['kept_rank']:.0f}"
    if "krylov_steps" in record:
        extra = f"{record['krylov_steps']:.0f} Krylov steps, J u to {record['krylov_change']:.0e}"
    cells = f"{backend_name:5s} | {way:8s} | {shape} | {peak():5.2f} GB (before: {before:4.2f}) | {seconds:7.2f} s"
    print(f"{cells} | {extra}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["torch", "jax"], choices=["torch", "jax"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--outputs", type=int, default=64)
    parser.add_argument("--width", type=int, default=560)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options, options.backends[0], options.ways[0])
        return
    sizes = [f"--{name}={getattr(options, name)}" for name in ("batch", "outputs", "width")]
    for backend in options.backends:
        for way in options.ways:
            command = [sys.executable, __file__, "--here", "--backends", backend, "--ways", way, *sizes]
            one_core = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
            subprocess.run(command, check=True, env={**os.environ, **one_core})


if __name__ == "__main__":
    main()
