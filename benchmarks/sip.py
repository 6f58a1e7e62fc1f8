"""What a step of scale-invariant physics costs beside a step of Adam on the same network: heat, Poisson, sine.

    python benchmarks/sip.py [--backend jax] [--pairs 30]

Both rules step in turn on the same batches in one process, so that a busy machine slows both; the ratio is the median
of the ratios of neighbours in time. Sizes are those of the scenarios with batches of 16 (heat, Poisson; U-net, 64 x 64)
and 100 (sine). Goals: at most 1.15 for heat and Poisson, at most 2 for sine; the published sine code needed about 3.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from contest import SCENARIOS, WARM_UP

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.scenario.build import Built, build

ADAM = {"update.type": "dp", "update.optimizer": {"type": "adam", "learning_rate": 1e-3}}
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], float, int]] = {
    "heat": ("heat_sip", {"train.batch_size": 16}, "heat_adam", {"train.batch_size": 16}, 1.15, 1),
    "poisson": ("poisson", {"train.batch_size": 16}, "poisson_adam", {"train.batch_size": 16}, 1.15, 1),
    "sine, xi = 32": ("sine", {}, "sine", ADAM, 2.0, 20),
    "sine, xi = 32, generic Newton": (
        "sine",
        {"update.inverse_solver": {"type": "newton", "max_loss_change": 0.2}},
        "sine",
        ADAM,
        2.0,
        20,
    ),
}
"""Scenario and overrides of SIP, of Adam, the goal, and how many times as many pairs of steps."""


def contestant(backend: Backend, scenario: str, overrides: dict[str, Any]) -> Built:
    """A scenario ready to train on this backend."""
    path = SCENARIOS / f"{scenario}.yaml"
    return build(load_scenario(path, {"run.backend": backend.name, **overrides}).sections, backend, lambda _: {})


def step_times(rivals: list[Built], pairs: int) -> tuple[float, float, float]:
    """Median milliseconds per step of both, and the median ratio of neighbours in time."""
    states, seconds = [], []
    for built in rivals:
        assert built.trainer is not None
        states.append(built.trainer.start(built.params, built.buffers))
    for number in range(WARM_UP + pairs):
        row = []
        for i, built in enumerate(rivals):
            assert built.trainer is not None
            assert built.batches is not None
            states[i], record = built.trainer.step(states[i], built.batches(number))
            row.append(record["step_seconds"])
        seconds.append(row)
    seconds = seconds[WARM_UP:]
    first, second = (1e3 * median(column) for column in zip(*seconds, strict=True))
    return first, second, median(a / b for a, b in seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="jax", choices=["torch", "jax"])
    parser.add_argument("--pairs", type=int, default=30, help="timed pairs of steps of heat and Poisson")
    options = parser.parse_args()
    print(f"{options.backend}, physics float64, network float32")
    print(f"{'case':29s} |  SIP ms | Adam ms | ratio | goal")
    with using(options.backend, "cpu", "float64", "float32") as backend:
        for case, (sip, sip_overrides, adam, adam_overrides, goal, factor) in CASES.items():
            rivals = [contestant(backend, sip, sip_overrides), contestant(backend, adam, adam_overrides)]
            first, second, ratio = step_times(rivals, factor * options.pairs)
            print(f"{case:29s} | {first:7.2f} | {second:7.2f} | {ratio:5.2f} | {goal:4.2f}", flush=True)


if __name__ == "__main__":
    main()
