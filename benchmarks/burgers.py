"""The published control problem of the Burgers equation: loss per gradient step beside the printed one, and time.

    python benchmarks/burgers.py [--backend torch jax] [--steps 46]

Physics-based Deep Learning prints the mean square at t = ½ after each step of gradient descent from zero. Its target is
an array of unstated origin; `evolved_sine` rebuilds it to 0.008 at the front and 1.4e-4 on average. `own` has instead
the state that the scenario's own physics makes of −sin πx, whose front is sharper.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from toolkit import load_scenario
from toolkit.core.backend import using
from toolkit.scenario.build import build

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios" / "burgers_control.yaml"
PRINTED = {
    0: 0.382915,
    1: 0.326882,
    2: 0.281032,
    3: 0.242804,
    4: 0.210666,
    5: 0.183476,
    10: 0.096224,
    15: 0.054792,
    20: 0.032819,
    25: 0.020334,
    30: 0.012852,
    35: 0.008185,
    40: 0.005186,
    45: 0.003263,
}
OWN: dict[str, Any] = {"data": {"type": "sine", "train": 1, "validation": 1}}


def descend(backend: str, steps: int, overrides: dict[str, Any]) -> tuple[list[float], float]:
    """(loss before each gradient step, median milliseconds per step)."""
    with using(backend, "cpu", "float64", "float64") as active:
        sections = load_scenario(SCENARIO, {"run.backend": backend, **overrides}).sections
        built = build(sections, active, lambda path: {})
        assert built.trainer is not None
        assert built.batches is not None
        state = built.trainer.start(built.params, built.buffers)
        losses, seconds = [], []
        for number in range(steps):
            state, record = built.trainer.step(state, built.batches(number))
            losses.append(float(record["train_loss"]))
            seconds.append(record["step_seconds"])
    return losses, 1e3 * median(seconds[2:] or seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", nargs="+", default=["torch", "jax"], choices=["torch", "jax"])
    parser.add_argument("--steps", type=int, default=46)
    options = parser.parse_args()
    for backend in options.backend:
        losses, milliseconds = descend(backend, options.steps, {})
        own, _ = descend(backend, options.steps, OWN)
        print(f"{backend}: {milliseconds:.2f} ms per gradient step through 16 time steps of 128 cells")
        print("step | printed  | scenario | ratio | own target")
        for step, printed in PRINTED.items():
            if step < options.steps:
                ratio = losses[step] / printed
                print(f"{step:4d} | {printed:.6f} | {losses[step]:.6f} | {ratio:.3f} | {own[step]:.6f}")


if __name__ == "__main__":
    main()
