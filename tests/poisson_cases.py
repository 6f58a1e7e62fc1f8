"""Boxes, sources and problems that the tests of the Poisson equation share."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from plugins.poisson import PLUGIN, PoissonParameters, SmoothNoiseOptions
from toolkit.physics.grid import Grid
from toolkit.physics.layout import Layout
from toolkit.physics.losses import L2
from toolkit.physics.rollout import Rollout
from toolkit.training.problem import Control, LossTerm, Problem

CELLS, EXTENT = {"x": 9, "y": 8, "z": 5}, {"x": 4.5, "y": 10.4, "z": 3.1}
SIDES = {
    "periodic": ("periodic", "periodic"),
    "zero": ("zero", "zero"),
    "zero_gradient": ("zero_gradient", "zero_gradient"),
    "mixed": ("zero", "zero_gradient"),
    "turned": ("zero_gradient", "zero"),
}
"""The five kinds of axis: lower and upper side."""
BOXES = [
    *((kind,) for kind in SIDES),
    *product(SIDES, repeat=2),
    ("periodic", "zero", "mixed"),
    ("zero_gradient", "periodic", "zero_gradient"),
    ("turned", "zero_gradient", "zero"),
]
PAPER = Grid({"x": 64, "y": 64}, {"x": 64.0, "y": 64.0}, dict.fromkeys(("x-", "x+", "y-", "y+"), "zero"))
LEARNED = """
name: case
grid: {{cells: {{x: 8, y: 6}}, extent: {{x: 16, y: 18}}, boundary: {boundary}}}
pde: poisson
controls: {{s: {{acts_on: initial.source}}}}
data: {{type: smooth_noise, validation: 3}}
networks: {{f: {{type: conv_net, layers: [3], input: target, output: s}}}}
loss: {{type: l2, on: final.potential}}
update: {{type: {update}, optimizer: {{type: sgd, learning_rate: 0.1}}}}
"""


def box(kinds: tuple[str, ...]) -> Grid:
    """Unequal cells and numbers of cells; one kind of sides per axis."""
    axes = "xyz"[: len(kinds)]
    sides = {
        a + end: side for a, kind in zip(axes, kinds, strict=True) for end, side in zip("-+", SIDES[kind], strict=True)
    }
    return Grid({a: CELLS[a] for a in axes}, {a: EXTENT[a] for a in axes}, sides)


def pde(grid: Grid) -> Any:
    return PLUGIN.build(grid, PoissonParameters())


def rollout(backend, grid: Grid, steps: int = 1) -> Rollout:
    layout = Layout((), dict(grid.cells))
    return Rollout(backend, pde(grid), {"source": layout, "potential": layout}, {}, steps, 1.0)


def solved(backend, grid: Grid, source: np.ndarray, steps: int = 1) -> np.ndarray:
    """The potential of sources (B, *cells) after a compiled step."""
    roll, x = rollout(backend, grid, steps), backend.array(source, "physics")

    def run(x: Any) -> Any:
        return roll({"source": x, "potential": 0 * x}).final["potential"]

    return backend.numpy(backend.compile(run, x)(x))


def problem(backend, grid: Grid) -> Problem:
    """Potential from source, with the exact inverse."""
    layout, plugin = Layout((), dict(grid.cells)), PLUGIN.inverse_solvers["laplacian"]
    return Problem(
        backend=backend,
        plugin=PLUGIN,
        parameters=PoissonParameters(),
        grid=grid,
        rollout=rollout(backend, grid),
        controls=(Control("x", "initial.source", layout),),
        networks=(),
        terms=(LossTerm("final.potential", L2),),
        observations={"final.potential": layout},
        solver=(plugin, plugin.options()),
    )


def singular(kinds: tuple[str, ...]) -> bool:
    return set(kinds) <= {"periodic", "zero_gradient"}


def sources(grid: Grid, count: int = 2) -> np.ndarray:
    """Random sources, of mean zero if the box needs that."""
    x = np.random.default_rng(0).standard_normal((count, *grid.shape))
    axes = tuple(range(1, x.ndim))
    return x if "zero" in grid.boundary_words() else x - x.mean(axes, keepdims=True)


def noise(count: int, grid: Grid = PAPER, seed: int = 0, **options: Any) -> np.ndarray:
    """Sources of the published sampler."""
    sampler = PLUGIN.samplers["smooth_noise"]
    drawn = sampler.sample(grid, PoissonParameters(), SmoothNoiseOptions(**options), np.random.default_rng(seed), count)
    return drawn["initial.source"]
