"""Half-inverse gradients against Adam and Gauss–Newton for equal time: the five published experiments.

    python benchmarks/hig.py [--experiments oscillators …] [--seeds 0 1 2] [--seconds-scale 1] [--clock cpu|wall]
                             [--backend jax] [--sensitivity] [--figure F] [--results F]

Each rule trains with the scenarios' constants for the same time from the same weights; the clock stands still while
programs compile and losses are measured. `--clock cpu` (default) counts the processor time of this process, which a
busy machine does not stretch; run with OMP_NUM_THREADS=1 and XLA_FLAGS=--xla_cpu_multi_thread_eigen=false, so that it
is the time of one core. Losses are means over the validation samples. A training that meets non-finite numbers ends:
`diverged`. For Poisson's equation losses after equal numbers of updates are printed, too.

`--sensitivity` prints the loss of `oscillators_linear` after six epochs for other κ, batch sizes, τ and η.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from toolkit import DivergenceError, load_scenario
from toolkit.core.backend import using
from toolkit.scenario.build import Built, build
from toolkit.scenario.sections import Sections
from toolkit.scenario.sweep import expand
from toolkit.training.loop import TrainState, evaluate
from toolkit.training.problem import batch_from_tree

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
RULES = {"hig": "", "adam": "_adam", "gauss_newton": "_gauss_newton"}
"""Rule -> what follows the experiment's name in the name of its scenario."""
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
MEASURED = 30
"""Validations per training, at times that grow geometrically."""
EARLY = (10, 20, 40, 80, 160)
"""Further validations, after these numbers of updates."""


@dataclass(frozen=True)
class Contest:
    """How long an experiment lasts, and what is expected of its losses (HIG, Adam)."""

    seconds: float
    goal: str
    met: Callable[[float, float], bool]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Of the scenarios that invert a Jacobian."""


CONTESTS = {
    "oscillators_linear": Contest(25, "Adam/HIG >= 300", lambda hig, adam: adam >= 300 * hig),
    "oscillators": Contest(30, "Adam/HIG >= 4", lambda hig, adam: adam >= 4 * hig),
    "quantum_dipole": Contest(60, "Adam/HIG >= 15", lambda hig, adam: adam >= 15 * hig),
    "toy_regression": Contest(20, "HIG <= 6e-3, Adam >= 0.1", lambda hig, adam: hig <= 6e-3 and adam >= 0.1),
    # At the published batch size of 64 the matrix to decompose is 4096 x 4096, 16 times as many numbers.
    "poisson_hig": Contest(30, "none at equal time", lambda hig, adam: True, {"train.batch_size": 16}),
}


@dataclass
class Training:
    """What one training gave."""

    experiment: str
    rule: str
    seed: int
    curve: list[tuple[float, int, float]] = field(default_factory=list)
    """(seconds, updates, validation loss)."""
    step_seconds: list[float] = field(default_factory=list)
    diverged: bool = False

    @property
    def final(self) -> float:
        """The last loss; infinite if there was none."""
        return math.inf if self.diverged else self.curve[-1][2]

    def at(self, updates: int) -> float:
        """The loss at the validation closest to this many updates."""
        return min(self.curve, key=lambda point: abs(point[1] - updates))[2]


@dataclass
class Runner:
    """A scenario on its backend, with its validation and its step compiled, and its clock."""

    built: Built
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        built, backend = self.built, self.built.problem.backend
        assert built.trainer is not None
        assert built.batches is not None
        assert built.validation is not None
        self.trainer, self.batches = built.trainer, built.batches

        def loss(params: Any, buffers: Any, tree: Any) -> Any:
            return backend.xp.mean(evaluate(built.problem, params, buffers, batch_from_tree(tree)).loss)

        self.tree = built.validation.tree()
        self.compiled = backend.compile(loss, built.params, built.buffers, self.tree)
        self.state = self.trainer.start(built.params, built.buffers)
        # Compiles; the state it gives is thrown away.
        self.trainer.step(self.state, self.batches(0))

    def step(self) -> float:
        """One update; seconds it took, the making of the batch included."""
        start = self.clock()
        self.state, _ = self.trainer.step(self.state, self.batches(self.state.step))
        return self.clock() - start

    def loss(self, state: TrainState | None = None) -> float:
        """The validation loss."""
        state = state or self.state
        backend = self.built.problem.backend
        return float(backend.without_gradient(self.compiled, state.params, state.buffers, self.tree))


def load(name: str, seed: int, overrides: Mapping[str, Any]) -> Sections:
    """A scenario with another seed of weights and data."""
    return load_scenario(SCENARIOS / f"{name}.yaml", {"run.seed": seed, "data.seed": seed + 1, **overrides}).sections


def train(experiment: str, rule: str, seed: int, seconds: float, options: argparse.Namespace) -> Training:
    """One training of `seconds`."""
    result = Training(experiment, rule, seed)
    changed = {} if rule == "adam" else CONTESTS[experiment].overrides
    sections = load(experiment + RULES[rule], seed, {"run.backend": options.backend, **changed})
    with using(options.backend, "cpu", sections.physics_precision, sections.network_precision) as backend:
        runner = Runner(build(sections, backend, lambda path: {}), CLOCKS[options.clock])
        result.curve.append((0.0, 0, runner.loss()))
        spent, due = 0.0, [seconds * 100 ** (i / (MEASURED - 1) - 1) for i in range(MEASURED)]
        while spent < seconds:
            try:
                result.step_seconds.append(runner.step())
            except DivergenceError:
                result.diverged = True
                break
            spent += result.step_seconds[-1]
            if spent >= due[0] or runner.state.step in EARLY:
                due = [at for at in due if at > spent] or [math.inf]
                result.curve.append((spent, runner.state.step, runner.loss()))
    return result


def report(results: list[Training]) -> None:
    """The table of one experiment: a row per rule, then the ratio of the medians."""
    contest, finals = CONTESTS[results[0].experiment], {}
    for rule in dict.fromkeys(r.rule for r in results):
        rows = [r for r in results if r.rule == rule]
        finals[rule] = median(r.final for r in rows)
        losses = " ".join("diverged" if r.diverged else f"{r.final:8.2e}" for r in rows)
        updates = median(len(r.step_seconds) for r in rows)
        milliseconds = 1e3 * median(s for r in rows for s in r.step_seconds)
        print(
            f"{results[0].experiment:18s} | {rule:12s} | {finals[rule]:8.2e} | {losses:28s} | {updates:8.0f} | "
            f"{milliseconds:8.2f}",
            flush=True,
        )
    if "hig" in finals and "adam" in finals:
        met = "met" if contest.met(finals["hig"], finals["adam"]) else "NOT met"
        print(f"{'':18s}   Adam/HIG {finals['adam'] / finals['hig']:.3g}; goal: {contest.goal}: {met}")
    if results[0].experiment == "poisson_hig":
        _per_update(results)


def _per_update(results: list[Training]) -> None:
    for updates in EARLY:
        known = [r for r in results if len(r.step_seconds) >= updates]
        at = {rule: median(r.at(updates) for r in known if r.rule == rule) for rule in {r.rule for r in known}}
        cells = ", ".join(f"{rule} {loss:.4g}" for rule, loss in sorted(at.items()))
        print(f"{'':18s}   after {updates} updates: {cells}")


def sensitivity(options: argparse.Namespace) -> None:
    """The loss after six epochs for every variant of `oscillators_linear_sensitivity`."""
    overrides = {"run.seed": options.seeds[0], "run.backend": options.backend}
    print(f"oscillators_linear, six epochs, seed {options.seeds[0]}")
    print("variant           | loss     | updates |  ms")
    for cell in expand(load_scenario(SCENARIOS / "oscillators_linear_sensitivity.yaml", overrides)):
        sections = cell.scenario.sections
        with using(options.backend, "cpu", sections.physics_precision, sections.network_precision) as backend:
            runner, seconds = Runner(build(sections, backend, lambda path: {}), CLOCKS[options.clock]), []
            assert sections.train.steps is not None
            text = ""
            try:
                for _ in range(sections.train.steps):
                    seconds.append(runner.step())
                text = f"{runner.loss():8.2e}"
            except DivergenceError:
                text = f"diverged in step {len(seconds) + 1}"
        label = str(next(iter(cell.labels.values())))
        print(f"{label:17s} | {text} | {len(seconds):7d} | {1e3 * median(seconds or [math.nan]):.2f}", flush=True)


def draw(path: Path, results: list[Training]) -> None:
    """Validation loss against seconds, one panel per experiment, one line per rule and seed."""
    names = [name for name in CONTESTS if any(r.experiment == name for r in results)]
    figure = Figure(figsize=(2.9 * len(names), 3.0), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        shown = [r for r in results if r.experiment == name]
        for rule, color, label in (
            ("gauss_newton", "C2", "Gauss–Newton"),
            ("adam", "C1", "Adam"),
            ("hig", "C0", "HIG"),
        ):
            for i, one in enumerate(r for r in shown if r.rule == rule):
                points = [(s, loss) for s, _, loss in one.curve if s > 0 and math.isfinite(loss)]
                if points:
                    panel.plot(*zip(*points, strict=True), color=color, lw=1.1, label=label if i == 0 else None)
                if one.diverged and points:
                    panel.plot(*points[-1], "x", color=color, ms=5)
        panel.set(title=name, xlabel="seconds of one core", xscale="log", yscale="log")
        best = min(loss for r in shown for _, _, loss in r.curve if math.isfinite(loss))
        panel.set_ylim(best / 2, 20 * max(r.curve[0][2] for r in shown))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="jax", choices=["torch", "jax"])
    parser.add_argument("--experiments", nargs="*", default=list(CONTESTS), choices=list(CONTESTS))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds-scale", type=float, default=1.0, help="factor of every experiment's time")
    parser.add_argument("--clock", default="cpu", choices=list(CLOCKS))
    parser.add_argument("--sensitivity", action="store_true", help="print the table of κ, batch size, τ and η only")
    parser.add_argument("--figure", type=Path)
    parser.add_argument(
        "--results", type=Path, nargs="+", help="files of results: written if new, else read and joined"
    )
    return parser


def main() -> None:
    options = _parser().parse_args()
    if options.sensitivity:
        sensitivity(options)
        return
    results: list[Training] = []
    for path in [p for p in options.results or [] if p.exists()]:
        results += [Training(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    print(f"{options.backend}, {options.clock} time; losses: median, then of each seed")
    print(f"{'experiment':18s} | rule         | loss     | of seeds {'':19s} | updates  | ms/update")
    for name in options.experiments:
        rows = [r for r in results if r.experiment == name]
        if not rows:
            seconds = CONTESTS[name].seconds * options.seconds_scale
            rows = [train(name, rule, seed, seconds, options) for rule in options.rules for seed in options.seeds]
            results += rows
        report(rows)
    for path in [p for p in options.results or [] if not p.exists()]:
        path.write_text(json.dumps([asdict(r) for r in results]), encoding="utf-8")
    if options.figure:
        draw(options.figure, results)


if __name__ == "__main__":
    main()
