"""Starts and targets of the heat equation: hot boxes on a cold background, pairs of them, a cosine with known decay.

`hot_rectangles` follows the description of Holl et al. 2022, section 4 "Heat equation".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit import Grid, Options, Sampler, option


class HotRectanglesOptions(Options):
    """Random hot boxes on a cold background."""

    boxes: tuple[int, int] = option((4, 10), description="least and largest number of boxes, both possible")
    half_size: tuple[float, float] = option((0.0, 10.0), units="length", description="range of half edges per axis")
    strength: tuple[float, float] = option((0.0, 1.0), units="kelvin", description="range of temperatures of a box")
    region: float = option(0.8, gt=0, le=1, description="fraction of the box per axis in which centres are drawn")


def _hot_rectangles(
    grid: Grid | None,
    parameters: Any,
    options: HotRectanglesOptions,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """Sums of boxes with soft edges: a cell holds clip(½ − d/r, 0, 1) of a box's temperature, d its signed
    L∞ distance to the box and r the cell's bounding radius."""
    assert grid is not None
    low, high = options.boxes
    number = rng.integers(low, high + 1, count)
    extent = np.array(list(grid.extent.values()))
    centre = extent * (0.5 + options.region * (rng.random((count, high, len(extent))) - 0.5))
    half = rng.uniform(*options.half_size, (count, high, len(extent)))
    centre = np.clip(centre, half, extent - half)
    strength = rng.uniform(*options.strength, (count, high)) * (np.arange(high) < number[:, None])
    radius = 0.5 * float(np.linalg.norm(grid.dx))
    total = np.zeros((count, *grid.shape))
    for box in range(high):
        distance = np.full((count, *grid.shape), -np.inf)
        for i, axis in enumerate(grid.axes):
            shape = [-1 if j == i + 1 else 1 for j in range(len(extent) + 1)]
            position = grid.coordinates(axis).reshape(shape)
            at = [count] + [1] * len(extent)
            along = abs(position - centre[:, box, i].reshape(at)) - half[:, box, i].reshape(at)
            distance = np.maximum(distance, along)
        total += strength[:, box].reshape([count] + [1] * len(extent)) * np.clip(0.5 - distance / radius, 0, 1)
    return {"initial.temperature": total}


def _check_rectangles(grid: Grid | None, parameters: Any, options: HotRectanglesOptions) -> str | None:
    assert grid is not None
    for name, (low, high) in (
        ("boxes", options.boxes),
        ("half_size", options.half_size),
        ("strength", options.strength),
    ):
        if low > high:
            return f"data.{name}: the first of [{low}, {high}] must not be larger than the second"
    if options.boxes[1] > 10_000:
        return f"data.boxes: at most 10000 boxes are drawn one by one, not {options.boxes[1]}"
    if options.boxes[0] < 0 or options.half_size[0] < 0:
        return "data.boxes and data.half_size must not be negative"
    if 2 * options.half_size[1] > min(grid.extent.values()):
        return (
            f"data.half_size: boxes of edge {2 * options.half_size[1]:g} do not fit an extent of "
            f"{min(grid.extent.values()):g}; lower data.half_size or raise grid.extent"
        )
    return None


def _pairs(
    grid: Grid | None,
    parameters: Any,
    options: HotRectanglesOptions,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """A start and a target that know nothing of each other."""
    start, target = (_hot_rectangles(grid, parameters, options, rng, count) for _ in range(2))
    return {"initial.temperature": start["initial.temperature"], "target.temperature": target["initial.temperature"]}


class CosineOptions(Options):
    """One standing wave, whose decay is known in closed form."""

    waves: int = option(1, ge=0, description="full waves along every axis")
    amplitude: float = option(1.0, units="kelvin", description="amplitude of the wave")


def _cosine(
    grid: Grid | None,
    parameters: Any,
    options: CosineOptions,
    rng: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """amplitude Π cos(2π waves x / extent): decays at the rate D Σ(2π waves / extent)²."""
    assert grid is not None
    wave = np.ones(grid.shape) * options.amplitude
    for i, axis in enumerate(grid.axes):
        phase = 2 * np.pi * options.waves * grid.coordinates(axis) / grid.extent[axis]
        wave = wave * np.cos(phase).reshape([-1 if j == i else 1 for j in range(len(grid.axes))])
    return {"initial.temperature": np.repeat(wave[None], count, axis=0)}


def _check_cosine(grid: Grid | None, parameters: Any, options: CosineOptions) -> str | None:
    assert grid is not None
    if 2 * options.waves >= min(grid.shape):
        return f"data.waves: {options.waves} waves need more than {2 * options.waves} cells per axis"
    return None


SAMPLERS = {
    "hot_rectangles": Sampler(
        "sums of hot boxes with random places, sizes and temperatures",
        _hot_rectangles,
        HotRectanglesOptions,
        _check_rectangles,
    ),
    "rectangle_pairs": Sampler(
        "a start and, independent of it, a target to steer to, both sums of hot boxes",
        _pairs,
        HotRectanglesOptions,
        _check_rectangles,
    ),
    "cosine": Sampler("a cosine with known decay", _cosine, CosineOptions, _check_cosine),
}
