"""SIP against gradient-based optimizers on the sine of a rotated plane: distance to the solution and time per step.

    python benchmarks/sine.py [--backend jax] [--steps 10000] [--seeds 0 1 2] [--pairs 1000]

First table: mean distance to the closest preimage over the last 10 % of the steps, per seed (of weights and data), at
φ = 45°; every batch is new, so training batches serve as test. Second table: SIP and Adam step in turn in one
process, so that a busy machine slows both. Network and batches are those of `scenarios/sine.yaml`.
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
WARM_UP = 10


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


def step_times(backend: Backend, xi: float, pairs: int) -> tuple[float, float, float]:
    """Median milliseconds per step of (SIP, Adam) and the median of the ratios of neighbours in time."""
    both = [contestant(backend, xi, 0, rules(xi)[name]) for name in ("sip", "adam")]
    states, seconds = [], []
    for built in both:
        assert built.trainer is not None
        states.append(built.trainer.start(built.params, built.buffers))
    for number in range(WARM_UP + pairs):
        row = []
        for i, built in enumerate(both):
            assert built.trainer is not None
            assert built.batches is not None
            states[i], record = built.trainer.step(states[i], built.batches(number))
            row.append(record["step_seconds"])
        seconds.append(row)
    seconds = seconds[WARM_UP:]
    sip, adam = (1e3 * median(column) for column in zip(*seconds, strict=True))
    return sip, adam, median(s / a for s, a in seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="jax", choices=["torch", "jax"])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=1000, help="steps of SIP and Adam that are timed in turn")
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
        print("xi | SIP ms | Adam ms | ratio")
        for xi in (32.0, 1.0):
            sip, adam, ratio = step_times(backend, xi, options.pairs)
            print(f"{xi:2.0f} | {sip:6.3f} | {adam:7.3f} | {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    main()
