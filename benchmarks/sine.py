"""SIP against gradient-based optimizers on the sine of a rotated plane: distance to the solution.

    python benchmarks/sine.py [--backend jax] [--steps 10000] [--seeds 0 1 2]

The table has the mean distance to the closest preimage over the last 10 % of the steps, per seed (of weights and data),
at φ = 45°; every batch is new, so training batches serve as test. Network and batches are those of
`scenarios/sine.yaml`; what a step costs, `sip.py` measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.scenario.build import Built, build
from toolkit.training.loop import train

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios" / "sine.yaml"
BATCH = 100
PERCENT_COUNTED = 10


def rules(xi: float) -> dict[str, dict[str, object]]:
    """Overrides of the scenario by rule; published learning rates."""
    # 1e-2/ξ² holds for batch means, directions here are sums over the batch.
    rates = {"adam": 1e-3, "rmsprop": 3e-5, "adagrad": 3e-3, "adadelta": 3e-3, "sgd": 1e-2 / xi**2 / BATCH}
    gradient = {
        kind: {"update.type": "dp", "update.optimizer.type": kind, "update.optimizer.learning_rate": rate}
        for kind, rate in rates.items()
    }
    return {
        "sip": {"update.inverse_solver": {"type": "analytic_newton", "max_loss_change": 0.2}},
        "sip, exact inverse": {"update.inverse_solver": "closest_preimage"},
        **gradient,
    }


def contestant(backend: Backend, xi: float, seed: int, overrides: Mapping[str, object]) -> Built:
    """The scenario with another ξ, seed and rule."""
    fixed = {"pde.xi": xi, "run.seed": seed, "data.seed": seed, "run.backend": backend.name}
    return build(load_scenario(SCENARIO, {**fixed, **overrides}).sections, backend, lambda path: {})


def final_distance(built: Built, steps: int) -> tuple[float, float]:
    """Means of (x_distance, y loss) over the last steps of a training."""
    assert built.trainer is not None
    assert built.batches is not None
    state = built.trainer.start(built.params, built.buffers)
    records = [record for _, record in train(built.trainer, state, built.batches, steps)]
    last = records[-max(1, steps * PERCENT_COUNTED // 100) :]
    return mean(r["train_x_distance"] for r in last), mean(r["train_loss"] for r in last)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="jax", choices=["torch", "jax"])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print(f"sine, φ = 45°, batch {BATCH}, {options.steps} steps, {options.backend}, physics float64, network float32")
    width = max(9 * len(options.seeds) - 1, len("x distance per seed"))
    print(f"xi | {'rule':18s} | {'x distance per seed':{width}s} | median   | y loss")
    with using(options.backend, "cpu", "float64", "float32") as backend:
        for xi in (32.0, 1.0):
            for name, overrides in rules(xi).items():
                found = [
                    final_distance(contestant(backend, xi, seed, overrides), options.steps) for seed in options.seeds
                ]
                distances = [distance for distance, _ in found]
                cells = " ".join(f"{x:8.2e}" for x in distances)
                x, y = median(distances), median(loss for _, loss in found)
                print(f"{xi:2.0f} | {name:18s} | {cells:{width}s} | {x:8.2e} | {y:8.2e}", flush=True)


if __name__ == "__main__":
    main()
