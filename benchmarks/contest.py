"""SIP against differentiable physics on one pair of scenarios: error and time per step, measured side by side.

Both rules start from the same weights and see the same batches, in one process; their steps are timed in turn, so that
a busy machine slows both. x error is ½Σ(x − x*)² per validation sample, `start x` the same on the first training batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.scenario.build import Built, build
from toolkit.training.calibration import calibrate
from toolkit.training.loop import TrainState, evaluate
from toolkit.training.problem import batch_from_tree

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
WARM_UP = 2
"""Steps at the start that are not timed: the first ones of torch include its warm-up."""


@dataclass
class Contestant:
    """One rule in training."""

    built: Built
    state: TrainState
    seconds: list[float]
    curve: list[float]

    def step(self, number: int) -> None:
        """One update on the batch of this number."""
        assert self.built.trainer is not None
        assert self.built.batches is not None
        self.state, record = self.built.trainer.step(self.state, self.built.batches(number))
        self.seconds.append(record["step_seconds"])
        self.curve.append(record["train_control_error"])

    def errors(self, backend: Backend) -> tuple[float, float]:
        """(x error, y error) on the validation samples, with the statistics of the last batch."""
        problem, batches, validation = self.built.problem, self.built.batches, self.built.validation
        assert batches is not None
        assert validation is not None

        def measure(params: Any, buffers: Any, last: Any, held_out: Any) -> tuple[Any, Any]:
            found = calibrate(problem, params, buffers, batch_from_tree(last))
            result = evaluate(problem, params, found, batch_from_tree(held_out))
            return backend.xp.mean(result.control_error), backend.xp.mean(result.loss)

        args = (self.state.params, self.state.buffers, batches(self.state.step - 1).tree(), validation.tree())
        x, y = backend.without_gradient(backend.compile(measure, *args), *args)
        return float(x), float(y)


@dataclass(frozen=True)
class Result:
    """What one seed gave; x and y errors of SIP and Adam, and milliseconds per step."""

    start: float
    sip: tuple[float, float]
    adam: tuple[float, float]
    milliseconds: tuple[float, float]
    time_ratio: float
    """Median over the steps of SIP's time over Adam's."""


def contest(backend: Backend, scenarios: tuple[str, str], seed: int, steps: int, batch: int) -> Result:
    """Train the scenarios of SIP and Adam for some steps, step by step in turn."""
    overrides: Mapping[str, Any] = {"run.seed": seed, "train.batch_size": batch, "run.backend": backend.name}
    rivals = []
    for name in scenarios:
        built = build(load_scenario(SCENARIOS / f"{name}.yaml", overrides).sections, backend, lambda path: {})
        assert built.trainer is not None
        rivals.append(Contestant(built, built.trainer.start(built.params, built.buffers), [], []))
    for number in range(steps):
        for rival in rivals:
            rival.step(number)
    sip, adam = rivals
    pairs = list(zip(sip.seconds, adam.seconds, strict=True))
    pairs = pairs[WARM_UP:] or pairs
    sip_ms, adam_ms = (1e3 * median(column) for column in zip(*pairs, strict=True))
    ratio = median(s / a for s, a in pairs)
    return Result(sip.curve[0], sip.errors(backend), adam.errors(backend), (sip_ms, adam_ms), ratio)


def command(title: str, scenarios: tuple[str, str], steps: int) -> None:
    """The command line of a benchmark: `--backend`, `--steps`, `--batch`, `--seeds`; prints one row per seed."""
    parser = argparse.ArgumentParser(description=f"{title}: SIP against differentiable physics with Adam.")
    parser.add_argument("--backend", default="jax", choices=["torch", "jax"])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    print(f"{title}, batch {chosen.batch}, {chosen.steps} steps, {chosen.backend}, physics float64, network float32")
    print("seed |  start x |    SIP x |   Adam x | ratio |     SIP y |    Adam y | SIP ms | Adam ms | ratio")
    errors, times = [], []
    with using(chosen.backend, "cpu", "float64", "float32") as backend:
        for seed in chosen.seeds:
            r = contest(backend, scenarios, seed, chosen.steps, chosen.batch)
            errors.append(r.sip[0] / r.adam[0])
            times.append(r.time_ratio)
            print(
                f"{seed:4d} | {r.start:8.1f} | {r.sip[0]:8.2f} | {r.adam[0]:8.2f} | {errors[-1]:5.3f} | "
                f"{r.sip[1]:9.4g} | {r.adam[1]:9.4g} | {r.milliseconds[0]:6.1f} | {r.milliseconds[1]:7.1f} | "
                f"{r.time_ratio:5.3f}",
                flush=True,
            )
    print(f"mean x-error ratio SIP/Adam {mean(errors):.3f}, median time ratio {median(times):.3f}")
