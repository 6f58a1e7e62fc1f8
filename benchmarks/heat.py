"""SIP against differentiable physics on the heat equation: error and time per step, measured side by side.

    python benchmarks/heat.py [--backend jax] [--steps 50] [--batch 16] [--seeds 0 1 2]

Both rules start from the same weights and see the same batches, in one process; their steps are timed in turn, so that
a busy machine slows both. x error is ½Σ(x − x*)² per validation sample, `start x` the same on the first training batch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.scenario.build import Built, build
from toolkit.training.calibration import calibrate
from toolkit.training.loop import TrainState, evaluate
from toolkit.training.problem import batch_from_tree

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
RULES = ("heat_sip", "heat_adam")


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

        def measure(params, buffers, last, held_out):
            found = calibrate(problem, params, buffers, batch_from_tree(last))
            result = evaluate(problem, params, found, batch_from_tree(held_out))
            return backend.xp.mean(result.control_error), backend.xp.mean(result.loss)

        args = (self.state.params, self.state.buffers, batches(self.state.step - 1).tree(), validation.tree())
        x, y = backend.without_gradient(backend.compile(measure, *args), *args)
        return float(x), float(y)


def contest(backend: Backend, seed: int, steps: int, batch: int) -> dict[str, Contestant]:
    """Train both rules for some steps, step by step in turn."""
    overrides = {"run.seed": seed, "train.batch_size": batch, "run.backend": backend.name}
    contestants = {}
    for name in RULES:
        built = build(load_scenario(SCENARIOS / f"{name}.yaml", overrides).sections, backend, lambda path: {})
        assert built.trainer is not None
        contestants[name] = Contestant(built, built.trainer.start(built.params, built.buffers), [], [])
    for number in range(steps):
        for contestant in contestants.values():
            contestant.step(number)
    return contestants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="jax", choices=["torch", "jax"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print(
        f"heat 64², batch {options.batch}, {options.steps} steps, {options.backend}, physics float64, network float32"
    )
    print("seed | start x | SIP x  | Adam x | ratio | SIP y  | Adam y | SIP ms | Adam ms | ratio")
    ratios, times = [], []
    with using(options.backend, "cpu", "float64", "float32") as backend:
        for seed in options.seeds:
            sip, adam = contest(backend, seed, options.steps, options.batch).values()
            (sx, sy), (ax, ay) = sip.errors(backend), adam.errors(backend)
            # The first steps of torch include its warm-up.
            pairs = list(zip(sip.seconds, adam.seconds, strict=True))[2:] or [(sip.seconds[0], adam.seconds[0])]
            ratio = median(s / a for s, a in pairs)
            ratios.append(sx / ax)
            times.append(ratio)
            s_ms, a_ms = (1e3 * median(column) for column in zip(*pairs, strict=True))
            print(
                f"{seed:4d} | {sip.curve[0]:7.1f} | {sx:6.2f} | {ax:6.2f} | {sx / ax:5.3f} | {sy:6.3f} | {ay:6.3f} | "
                f"{s_ms:6.1f} | {a_ms:7.1f} | {ratio:5.3f}",
                flush=True,
            )
    print(f"mean x-error ratio SIP/Adam {mean(ratios):.3f}, median time ratio {median(times):.3f}")


if __name__ == "__main__":
    main()
