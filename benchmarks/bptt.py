"""Flows of stable backpropagation through time side by side: validation loss by epoch, on the published problems.

    python benchmarks/bptt.py cart_pole [--poles 1] [--seeds 42 1 2] [--epochs 100]
    python benchmarks/bptt.py herding [--penalties 1 0.1 0.01 0.001]
    python benchmarks/bptt.py quantum [--levels 3 4 5]

256 training samples in batches of 8 (32 updates are an epoch), Adam, no clipping; all flows of a seed start from the
same weights and see the same batches, one epoch of each in turn. `last 30` is the mean of the loss over the last 30
epochs, as published curves are smoothed; `kept` and `cos` are the same means of the share of components that the vote
keeps and of cos(M, G), `ms` is the median time of an update. `--figure` draws the curves.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.figure import Figure

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.core.errors import DivergenceError
from toolkit.scenario.build import Built, build
from toolkit.training.loop import TrainState, evaluate
from toolkit.training.problem import batch_from_tree

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
UPDATES = 32
"""Per epoch."""
TAIL = 30
"""Epochs over which the last columns average."""
LAST = " |   lowest | last 30 | kept |   cos |    ms"


@dataclass
class Runner:
    """One flow in training."""

    backend: Backend
    built: Built
    curve: list[float] = field(default_factory=list)
    """Validation loss after each epoch, and before the first."""
    records: list[Mapping[str, float]] = field(default_factory=list)
    _measure: Any = None
    _state: TrainState | None = None

    def __post_init__(self) -> None:
        problem, trainer, validation = self.built.problem, self.built.trainer, self.built.validation
        assert trainer is not None
        assert validation is not None
        self._state = trainer.start(self.built.params, self.built.buffers)

        def measure(params: Any, tree: Any) -> Any:
            return self.backend.xp.mean(evaluate(problem, params, {}, batch_from_tree(tree)).loss)

        self._measure = self.backend.compile(measure, self._state.params, validation.tree())
        self._validate()

    def epoch(self) -> None:
        """Thirty-two updates and a validation; nothing more after a divergence."""
        trainer, batches = self.built.trainer, self.built.batches
        assert trainer is not None
        assert batches is not None
        assert self._state is not None
        try:
            for _ in range(UPDATES if self.curve[-1] < float("inf") else 0):
                self._state, record = trainer.step(self._state, batches(self._state.step))
                self.records.append(record)
            self._validate()
        except DivergenceError:
            self.curve.append(float("inf"))

    def _validate(self) -> None:
        assert self._state is not None
        assert self.built.validation is not None
        loss = self.backend.without_gradient(self._measure, self._state.params, self.built.validation.tree())
        self.curve.append(float(loss))

    def tail(self, name: str) -> float:
        """Mean of a metric over the last epochs."""
        return mean(record.get(name, float("nan")) for record in self.records[-TAIL * UPDATES :])


def race(
    name: str, overrides: Mapping[str, Any], flows: Sequence[str], epochs: int, backend: Backend
) -> dict[str, Runner]:
    """Train all flows of one setting, epoch by epoch in turn."""
    runners = {}
    for flow in flows:
        changed = {**overrides, "update.flow": flow, "run.backend": backend.name}
        runners[flow] = Runner(
            backend, build(load_scenario(SCENARIOS / f"{name}.yaml", changed).sections, backend, _none)
        )
    for _ in range(epochs):
        for runner in runners.values():
            runner.epoch()
    return runners


def _none(path: Path) -> dict[str, Any]:
    return {}


def report(title: str, runners: Mapping[str, Runner], epochs: int) -> None:
    """One row per flow."""
    shown = sorted({e for e in (0, 1, 3, 10, 30, 60, 100, 300, 1000) if e <= epochs} | {epochs})
    print(
        f"\n{title}\nflow     | "
        + " | ".join(f"{e:>8d}" for e in shown)
        + " |   lowest | last 30 | kept |   cos |    ms"
    )
    for flow, runner in runners.items():
        losses = " | ".join(f"{runner.curve[e]:8.4g}" for e in shown)
        ms = 1e3 * median(record["step_seconds"] for record in runner.records)
        more = f"{runner.tail('kept_share'):4.2f} | {runner.tail('cosine'):5.2f} | {ms:5.1f}"
        last = mean(runner.curve[-TAIL:])
        print(f"{flow:8} | {losses} | {min(runner.curve):8.4g} | {last:7.4g} | {more}", flush=True)


def draw(panels: Mapping[str, Mapping[str, Runner]], path: Path) -> None:
    """Curves of all settings beside each other."""
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, runners) in zip(axes, panels.items(), strict=True):
        for flow, runner in runners.items():
            axis.semilogy(runner.curve, label=flow)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
    axes[0].set_ylabel("validation loss")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def settings(chosen: argparse.Namespace) -> dict[str, tuple[str, dict[str, Any]]]:
    """(scenario, overrides) by title."""
    if chosen.problem == "cart_pole":
        return {
            f"cart-pole, {chosen.poles} pole(s), seed {seed}": (
                "cart_pole",
                {"pde.poles": chosen.poles, "run.seed": seed, "data.seed": seed},
            )
            for seed in chosen.seeds
        }
    if chosen.problem == "herding":
        return {
            f"herding, ρ = {rho:g}, seed {seed}": (
                "guidance_by_repulsion",
                {"loss.1.weight": rho, "run.seed": seed, "data.seed": seed},
            )
            for rho in chosen.penalties
            for seed in chosen.seeds
        }
    return {
        f"quantum, level {level}, seed {seed}": (
            "quantum_control",
            {"data.target_levels": [level], "run.seed": seed, "data.seed": seed},
        )
        for level in chosen.levels
        for seed in chosen.seeds[:1]
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=["cart_pole", "herding", "quantum"])
    parser.add_argument("--backend", default="jax", choices=["torch", "jax"])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--flows", nargs="+", default=["full", "physics", "combined", "stopped"])
    parser.add_argument("--poles", type=int, default=1)
    parser.add_argument("--penalties", type=float, nargs="+", default=[1.0, 0.1, 0.01, 0.001])
    parser.add_argument("--levels", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--figure", type=Path)
    chosen = parser.parse_args()
    panels = {}
    for title, (name, overrides) in settings(chosen).items():
        precision = load_scenario(SCENARIOS / f"{name}.yaml").sections
        with using(chosen.backend, "cpu", precision.physics_precision, precision.network_precision) as backend:
            panels[title] = race(name, overrides, chosen.flows, chosen.epochs, backend)
            report(title, panels[title], chosen.epochs)
    if chosen.figure:
        draw(panels, chosen.figure)


if __name__ == "__main__":
    main()
