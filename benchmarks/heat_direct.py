"""Direct optimisation of heat fields, sample by sample without a network: SIP against gradient descent.

    python benchmarks/heat_direct.py [--backend torch] [--samples 128] [--steps 1000] [--rules sip lbfgs]

Runs the cells of `scenarios/heat_direct.yaml` from x = 0 and prints means over the samples after 0, 1, 2, 5, 10, …
updates: x l2 = ½Σ(x − x*)², clipped l1 = Σ|max(x, 0) − x*|, y l2 = ½Σ(y − y*)². SIP and L-BFGS stop at the
scenario's own number of steps where that is smaller.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.scenario.build import build
from toolkit.scenario.sections import Sections
from toolkit.scenario.sweep import expand
from toolkit.training.loop import evaluate, train

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios" / "heat_direct.yaml"
RULES = ("sip", "gradient_descent")
SHOWN = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def cells(samples: int) -> Mapping[str, Sections]:
    """The resolved scenario of every rule, by its label."""
    scenario = load_scenario(SCENARIO, {"data.validation": samples})
    return {cell.labels["rule"]: cell.scenario.sections for cell in expand(scenario)}


def curve(backend: Backend, sections: Sections, steps: int) -> Iterator[tuple[int, float, dict[str, float]]]:
    """(updates done, seconds of training, mean errors) at the steps that are shown and at the last."""
    built = build(sections, backend, lambda path: {})
    problem, batch = built.problem, built.validation
    assert built.trainer is not None
    assert built.batches is not None
    assert batch is not None
    last = min(steps, sections.train.steps or steps)

    def errors(params):
        found = evaluate(problem, params, {}, batch)
        each = {"x l2": found.control_error, "clipped l1": found.control_metrics["clipped_l1"], "y l2": found.loss}
        return {name: backend.xp.mean(value) for name, value in each.items()}

    state = built.trainer.start(built.params, built.buffers)
    measure = backend.compile(errors, state.params)

    def means(params) -> dict[str, float]:
        return {name: float(value) for name, value in backend.without_gradient(measure, params).items()}

    yield 0, 0.0, means(state.params)
    for now, _ in train(built.trainer, state, built.batches, last):
        if now.step in SHOWN or now.step == last:
            yield now.step, now.seconds, means(now.params)


def main() -> None:
    parser = argparse.ArgumentParser(description="Direct optimisation of heat fields: SIP against gradient descent.")
    parser.add_argument("--backend", default="torch", choices=["torch", "jax"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1000, help="most updates of any rule")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=[*RULES, "lbfgs"])
    options = parser.parse_args()
    print(f"heat 64², {options.samples} samples from x = 0, {options.backend}, float64, cpu")
    print("rule             |  step |   x l2 | clipped l1 |    y l2 | seconds")
    with using(options.backend, "cpu", "float64", "float64") as backend:
        for rule, sections in cells(options.samples).items():
            if rule not in options.rules:
                continue
            for step, seconds, mean in curve(backend, sections, options.steps):
                print(
                    f"{rule:16s} | {step:5d} | {mean['x l2']:6.2f} | {mean['clipped l1']:10.2f} | "
                    f"{mean['y l2']:7.1e} | {seconds:7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
