"""A regular grid in 1, 2 or 3 dimensions: cells, extent, boundary per side, and its PhiFlow fields.

Fields are cell-centred. Cell i along an axis is centred at lower + (i + ½) dx; cells may have different sizes
along different axes. A boundary is a word (`periodic`, `zero`, `zero_gradient`) or a fixed value, per side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from phi.field import CenteredGrid, Field
from phi.geom import Box
from phiml import math
from phiml.math import Tensor, extrapolation

AXES = ("x", "y", "z")
BOUNDARY_WORDS = ("periodic", "zero", "zero_gradient")


@dataclass(frozen=True)
class Grid:
    """Cells and physical extent per axis (ordered x, y, z), and what lies beyond each side."""

    cells: Mapping[str, int]
    extent: Mapping[str, float]
    boundary: Mapping[str, str | float] = field(default_factory=dict)
    """By side, `x-`, `x+`, `y-`, …: a word of BOUNDARY_WORDS or a fixed value; missing sides are periodic."""

    def __post_init__(self) -> None:
        if tuple(self.cells) != AXES[: len(self.cells)] or tuple(self.extent) != tuple(self.cells):
            raise ValueError(f"axes must be {AXES} in order: {tuple(self.cells)} and {tuple(self.extent)}")
        for axis in self.cells:
            if self.cells[axis] < 1 or not self.extent[axis] > 0:
                raise ValueError(f"axis {axis}: cells and extent must be positive")
            periodic = {self.side(axis, end) == "periodic" for end in "-+"}
            if len(periodic) == 2:
                raise ValueError(f"axis {axis}: periodic on one side only")

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, in order."""
        return tuple(self.cells)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells per axis."""
        return tuple(self.cells.values())

    @property
    def dx(self) -> tuple[float, ...]:
        """Cell size per axis, in units of length."""
        return tuple(self.extent[a] / self.cells[a] for a in self.axes)

    def side(self, axis: str, end: str) -> str | float:
        """The boundary on one side, `end` being `-` or `+`."""
        return self.boundary.get(axis + end, "periodic")

    def boundary_words(self) -> frozenset[str]:
        """The kinds of boundary in use; `value` stands for any fixed value."""
        sides = [self.side(axis, end) for axis in self.axes for end in "-+"]
        return frozenset(s if isinstance(s, str) else "value" for s in sides)

    def coordinates(self, axis: str) -> np.ndarray:
        """Cell centres along an axis, in units of length."""
        dx = self.extent[axis] / self.cells[axis]
        return (np.arange(self.cells[axis]) + 0.5) * dx

    def wavenumbers(self) -> list[np.ndarray]:
        """Angular wavenumbers per axis in FFT order, broadcastable to the grid, in 1 / length."""
        result = []
        for i, axis in enumerate(self.axes):
            k = 2 * np.pi * np.fft.fftfreq(self.cells[axis], self.extent[axis] / self.cells[axis])
            result.append(k.reshape([-1 if j == i else 1 for j in range(len(self.axes))]))
        return result

    @property
    def phi_boundary(self) -> Any:
        """The boundary as a PhiFlow extrapolation."""
        words = {"periodic": extrapolation.PERIODIC, "zero": extrapolation.ZERO}
        words["zero_gradient"] = extrapolation.ZERO_GRADIENT

        def one(side: str | float) -> Any:
            return words[side] if isinstance(side, str) else extrapolation.ConstantExtrapolation(side)

        sides = {a: (one(self.side(a, "-")), one(self.side(a, "+"))) for a in self.axes}
        combine: Any = extrapolation.combine_sides  # its annotation lacks the pair per axis that it takes
        return combine(**sides)

    def field(self, values: Tensor) -> Field:
        """Cell-centred PhiFlow field of these values with this grid's boundary."""
        vector = math.channel(vector=",".join(self.axes))
        lower, upper = math.tensor([0.0] * len(self.axes), vector), math.tensor(list(self.extent.values()), vector)
        box: Any = Box  # a metaclass builds it from two corners, unseen by type checkers
        bounds = box(lower, upper)
        resolution = math.spatial(**dict(self.cells))
        return CenteredGrid(values, self.phi_boundary, bounds, resolution)
