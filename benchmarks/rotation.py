"""The rotation toy: where gradient, physics flow and combined flow lead, in the plane of its two weights.

    python benchmarks/rotation.py [--backend torch] [--figure docs/images/rotation.png]

`scenarios/rotation.yaml` from (2, 4), Adam with a learning rate of 0.1, 200 updates. Table: |θ|² at its turning
points; picture: the paths over the direction field of each flow, and |θ|² by update.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from toolkit import load_scenario
from toolkit.core.backend import Backend, using
from toolkit.scenario.build import Built, build

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios" / "rotation.yaml"
FLOWS = ("full", "physics", "combined")
PUBLISHED = {
    "full": {59: 0.002, 72: 0.010},
    "physics": {35: 0.845, 60: 3.75, 83: 1.13, 107: 3.92, 128: 1.65, 154: 4.88, 175: 2.49, 200: 6.22},
    "combined": {37: 0.486, 56: 1.11, 83: 0.131, 101: 0.395, 121: 0.057, 155: 0.030, 187: 0.019, 200: 0.067},
}
"""|θ|² by update, from an independent program."""
TITLES = {
    "full": "full: G = θ",
    "physics": "physics: M = θ + 2 (θ₂, −θ₁)",
    "combined": "combined: M where G has its sign",
}


def path_of(made: Built) -> np.ndarray:
    """θ before and after each of 200 updates, (201, 2)."""
    trainer, batches = made.trainer, made.batches
    assert trainer is not None
    assert batches is not None
    state, found = trainer.start(made.params, made.buffers), []
    for step in range(201):
        found.append(made.problem.backend.numpy(next(iter(state.params.values()))).ravel())
        if step < 200:
            state, _ = trainer.step(state, batches(step))
    return np.array(found)


def field_of(made: Built, backend: Backend, places: np.ndarray) -> np.ndarray:
    """Direction at each of (n, 2) places."""
    assert made.trainer is not None
    assert made.validation is not None
    rule, batch, name = made.trainer.rule, made.validation, next(iter(made.params))
    found = []
    for place in places:
        theta = {name: backend.array(place[None], "network")}
        found.append(backend.numpy(rule(made.problem, theta, made.buffers, batch).direction[name]).ravel())
    return np.array(found)


def draw(paths: Mapping[str, np.ndarray], fields: Mapping[str, np.ndarray], places: np.ndarray, path: Path) -> None:
    """Four panels."""
    figure = Figure(figsize=(15, 3.9), layout="constrained")
    axes: Any = figure.subplots(1, 4)
    for axis, flow in zip(axes, FLOWS, strict=False):
        v = -fields[flow]
        axis.quiver(*places.T, *v.T, np.linalg.norm(v, axis=1), cmap="Blues", angles="xy", width=0.004)
        axis.plot(*paths[flow].T, color="C1", lw=1.3)
        axis.plot(*paths[flow][0], "o", color="C1", ms=5)
        axis.plot(0, 0, "k+", ms=9)
        axis.set(title=TITLES[flow], xlabel="θ₁", ylabel="θ₂", xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), aspect="equal")
    for flow in FLOWS:
        axes[3].semilogy(np.sum(paths[flow] ** 2, axis=1), label=flow)
    axes[3].set(title="distance from the minimum", xlabel="update", ylabel="|θ|²", ylim=(1e-5, 30))
    axes[3].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="torch", choices=["torch", "jax"])
    parser.add_argument("--figure", type=Path)
    chosen = parser.parse_args()
    axis = np.linspace(-4.2, 4.2, 15)
    places = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    paths, fields = {}, {}
    with using(chosen.backend, "cpu", "float64", "float64") as backend:
        for flow in FLOWS:
            overrides = {"update.flow": flow, "run.backend": chosen.backend}
            made = build(load_scenario(SCENARIO, overrides).sections, backend, lambda path: {})
            paths[flow] = path_of(made)
            fields[flow] = field_of(made, backend, places) if chosen.figure else places
            squares = np.sum(paths[flow] ** 2, axis=1)
            row = ", ".join(f"{n}: {squares[n]:.3g} ({value:g})" for n, value in PUBLISHED[flow].items())
            print(f"{flow:8} | |θ|² after updates (reference): {row}")
    if chosen.figure:
        draw(paths, fields, places, chosen.figure)


if __name__ == "__main__":
    main()
