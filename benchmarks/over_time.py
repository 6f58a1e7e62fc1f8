"""Scale-invariant physics over time against backpropagation through time: control of heat, correction of Burgers.

    python benchmarks/over_time.py [--backend jax] [--seeds 0 1] [--heat-steps 160] [--burgers-steps 300] [--figure F]

Both rules see the same batches and start from the same weights; they step in turn in one process, so that a busy
machine slows both. The table has the validation loss (½Σ(y − y*)², mean over samples) after a quarter, a half and all
of the steps, and the median time per step with its ratio. `--figure` draws the curves that the docs show.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.figure import Figure

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.scenario.build import Built, build
from toolkit.training.loop import TrainState, evaluate
from toolkit.training.problem import batch_from_tree

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
CASES = {"heat": ("heat_control_sip", "heat_control_dp"), "burgers": ("burgers_correction", "burgers_correction_dp")}
RULES = ("sip", "dp")
MEASURED = 40
"""Validations per training."""
WARM_UP = 2


@dataclass
class Rival:
    """One rule in training."""

    built: Built
    state: TrainState
    validate: Any
    seconds: list[float] = field(default_factory=list)
    curve: dict[int, float] = field(default_factory=dict)

    def step(self, number: int) -> None:
        """One update on the batch of this number."""
        assert self.built.trainer is not None
        assert self.built.batches is not None
        self.state, record = self.built.trainer.step(self.state, self.built.batches(number))
        self.seconds.append(record["step_seconds"])

    def measure(self, step: int) -> None:
        """The validation loss after `step` updates."""
        assert self.built.validation is not None
        self.curve[step] = float(self.validate(self.state.params, self.state.buffers, self.built.validation.tree()))


def rival(backend: Backend, scenario: str, seed: int) -> Rival:
    """A scenario ready to train, its validation compiled."""
    overrides = {"run.seed": seed, "data.seed": seed + 1, "run.backend": backend.name}
    built = build(load_scenario(SCENARIOS / f"{scenario}.yaml", overrides).sections, backend, lambda path: {})
    assert built.trainer is not None
    assert built.validation is not None

    def loss(params: Any, buffers: Any, tree: Any) -> Any:
        return backend.xp.mean(evaluate(built.problem, params, buffers, batch_from_tree(tree)).loss)

    compiled = backend.compile(loss, built.params, built.buffers, built.validation.tree())
    state = built.trainer.start(built.params, built.buffers)
    return Rival(built, state, lambda *args: backend.without_gradient(compiled, *args))


def race(backend: Backend, case: str, seed: int, steps: int) -> list[Rival]:
    """Train both rules of a case in turn."""
    rivals = [rival(backend, name, seed) for name in CASES[case]]
    every = max(1, steps // MEASURED)
    for one in rivals:
        one.measure(0)
    for number in range(steps):
        for one in rivals:
            one.step(number)
            if (number + 1) % every == 0 or number + 1 == steps:
                one.measure(number + 1)
    return rivals


def report(case: str, seed: int, steps: int, rivals: list[Rival]) -> None:
    """One row of the table."""
    cells = []
    for one in rivals:
        places = [min(one.curve, key=lambda at, wanted=wanted: abs(at - wanted)) for wanted in (steps // 4, steps // 2)]
        tail = [loss for at, loss in one.curve.items() if at > 0.9 * steps]
        cells.append(" ".join(f"{value:9.4g}" for value in (*(one.curve[at] for at in places), mean(tail))))
    pairs = list(zip(*(one.seconds for one in rivals), strict=True))[WARM_UP:]
    times = [1e3 * median(column) for column in zip(*pairs, strict=True)]
    ratio = median(a / b for a, b in pairs)
    time = f"{times[0]:7.1f} | {times[1]:7.1f} | {ratio:5.2f}"
    print(f"{case:7s} | {seed:4d} | {cells[0]} | {cells[1]} | {time}", flush=True)


def draw(path: Path, results: dict[str, list[list[Rival]]]) -> None:
    """Validation loss against updates, one panel per case, one line per rule and seed."""
    figure = Figure(figsize=(4.2 * len(results), 3.2), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False)
    titles = {"heat": "heat_control", "burgers": "burgers_correction"}
    for panel, (case, races) in zip(axes[0], results.items(), strict=True):
        for rivals in races:
            for rule, color, one in zip(RULES, ("C0", "C1"), rivals, strict=True):
                label = rule.upper() if rivals is races[0] else None
                panel.plot(list(one.curve), list(one.curve.values()), color=color, label=label, lw=1.2)
        panel.set(title=titles[case], xlabel="updates", ylabel="validation loss ½Σ(y − y*)²", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="jax", choices=["torch", "jax"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--heat-steps", type=int, default=160)
    parser.add_argument("--burgers-steps", type=int, default=300)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    print(f"{options.backend}, physics float64, network float32; losses after 1/4, 1/2, over the last tenth of steps")
    print(f"{'case':7s} | seed | {'SIP':29s} | {'DP':29s} |  SIP ms |   DP ms | ratio")
    results: dict[str, list[list[Rival]]] = {}
    with using(options.backend, "cpu", "float64", "float32") as backend:
        for case, steps in (("burgers", options.burgers_steps), ("heat", options.heat_steps)):
            for seed in options.seeds if steps else []:
                rivals = race(backend, case, seed, steps)
                results.setdefault(case, []).append(rivals)
                report(case, seed, steps, rivals)
    if options.figure:
        draw(options.figure, results)


if __name__ == "__main__":
    main()
