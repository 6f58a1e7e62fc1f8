"""Drawing samples: the only place that knows which samplers look at the time of the simulation."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.physics.grid import Grid
from toolkit.physics.plugin import Sampler, Timing


def draw(
    sampler: Sampler,
    grid: Grid | None,
    parameters: Any,
    options: Any,
    timing: Timing,
    generator: np.random.Generator,
    count: int,
) -> dict[str, np.ndarray]:
    """`count` samples by key, each array laid out (count, *cells, *components)."""
    time = (timing,) if sampler.in_time else ()
    return sampler.sample(grid, parameters, options, *time, generator, count)


def objection(sampler: Sampler, grid: Grid | None, parameters: Any, options: Any, timing: Timing) -> str | None:
    """Why this sampler cannot draw for this simulation, or None."""
    time = (timing,) if sampler.in_time else ()
    return sampler.check(grid, parameters, options, *time)
