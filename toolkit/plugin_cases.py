"""Small cases on which plugins are checked: a PDE on a grid with samples of it, and what checks say when they fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.core.backend import NAMES, Backend
from toolkit.core.streams import stream
from toolkit.physics.grid import Grid
from toolkit.physics.layout import Layout, field_layout
from toolkit.physics.losses import L2
from toolkit.physics.plugin import PDEPlugin, Sampler, Timing
from toolkit.physics.rollout import Rollout
from toolkit.physics.sampling import draw, objection
from toolkit.training.problem import Control, LossTerm, Problem

SAMPLES = 3
DT = 0.05
TIMING = Timing(steps=1, dt=DT)
CELLS = {"x": 12, "y": 10, "z": 8}
EXTENT = {"x": 30.0, "y": 26.0, "z": 22.0}
PARITY = 1e-9
"""Largest relative difference between backends: float64 rounding over a few dozen operations, with room."""


def small_grid(dimension: int) -> Grid | None:
    axes = list(CELLS)[:dimension]
    return Grid({a: CELLS[a] for a in axes}, {a: EXTENT[a] for a in axes}) if dimension else None


def usable_samplers(plugin: PDEPlugin, grid: Grid | None) -> list[Sampler | None]:
    """Samplers whose default options fit the grid; [None] where the PDE has none."""
    parameters = plugin.parameters(**plugin.example)
    usable: list[Sampler | None] = []
    for sampler in plugin.samplers.values():
        required = any(f.is_required() for f in sampler.options.model_fields.values())
        if required or objection(sampler, grid, parameters, sampler.options(), TIMING) is not None:
            continue
        drawn = draw(sampler, grid, parameters, sampler.options(), TIMING, stream(0, "check"), 1)
        if any(key.startswith("initial.") for key in drawn):  # a sampler of targets alone starts no simulation
            usable.append(sampler)
    return usable or [None]


@dataclass(frozen=True)
class Case:
    """A PDE on a grid with samples of it."""

    plugin: PDEPlugin
    problem: Problem
    x: dict[str, Any]
    """Native initial states and other controls, by key."""

    @property
    def name(self) -> str:
        return f"{self.plugin.name} on {self.problem.backend.name}"


def case_of(backend: Backend, plugin: PDEPlugin, grid: Grid | None, sampler: Sampler | None) -> Case:
    parameters = plugin.parameters(**plugin.example)
    specs = plugin.fields(parameters, grid)
    layouts = {spec.name: field_layout(spec, grid) for spec in specs}
    tunable = {name: Layout() for name in plugin.parameter_controls}
    actions = {spec.name: field_layout(spec, grid) for spec in plugin.actions(parameters, grid)}
    rollout = Rollout(backend, plugin.build(grid, parameters), layouts, tunable, 1, DT, actions)
    if sampler is None:
        rng = stream(0, "check")
        drawn = {f"initial.{n}": rng.uniform(0.5, 1.5, (SAMPLES, *layout.shape)) for n, layout in layouts.items()}
    else:
        drawn = dict(draw_twice(plugin, grid, parameters, sampler))
    x = {key: backend.array(value, "physics") for key, value in drawn.items() if key.startswith("initial.")}
    last = f"final.{specs[-1].name}"
    problem = Problem(
        backend=backend,
        plugin=plugin,
        parameters=parameters,
        grid=grid,
        rollout=rollout,
        controls=tuple(Control(key, key, layouts[key.partition(".")[2]]) for key in x),
        networks=(),
        terms=(LossTerm(last, L2),),
        observations={last: layouts[specs[-1].name]},
        monitors=plugin.monitors(parameters, grid),
    )
    return Case(plugin, problem, x)


def draw_twice(plugin: PDEPlugin, grid: Grid | None, parameters: Any, sampler: Sampler) -> Mapping[str, np.ndarray]:
    options = sampler.options()
    first, second = (draw(sampler, grid, parameters, options, TIMING, stream(1, "check"), SAMPLES) for _ in range(2))
    specs = {spec.name: spec for spec in (*plugin.fields(parameters, grid), *plugin.actions(parameters, grid))}
    for key, value in first.items():
        require(np.array_equal(value, second[key]), plugin.name, f"samples of {key} differ for one seed")
        require(value.shape[0] == SAMPLES, plugin.name, f"samples of {key} do not lie along the first axis")
        role, _, name = key.partition(".")
        if role in ("initial", "force", "source") and name in specs:
            expected = field_layout(specs[name], grid, TIMING.steps if role == "force" else None).shape
            sentence = f"samples of {key} have the shape {value.shape[1:]}, expected {expected}"
            require(value.shape[1:] == expected, plugin.name, sentence)
        require(bool(np.isfinite(value).all()), plugin.name, f"samples of {key} are not finite")
    return first


def compare(results: Mapping[str, Mapping[str, np.ndarray]], what: str) -> None:
    first, second = (results[name] for name in NAMES)
    for key in first:
        close(first[key], second[key], what, f"{' and '.join(NAMES)} disagree on {key}")


def close(a: np.ndarray, b: np.ndarray, what: str, sentence: str) -> None:
    scale = float(np.max(np.abs(a), initial=0.0)) or 1.0
    difference = float(np.max(np.abs(a - b), initial=0.0)) / scale
    require(difference < PARITY, what, f"{sentence}: relative difference {difference:.2g}")


def require(condition: bool, what: str, sentence: str) -> None:
    if not condition:
        raise AssertionError(f"{what}: {sentence}")
