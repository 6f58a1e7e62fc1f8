"""What the state of a system looks like, as shapes in a plane: for films of what has no grid, such as a pendulum.

A drawing says what is there, not how it is painted: colours, widths and fonts belong to whoever paints it. Lengths are
those of the PDE, and both axes have one scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float]
Limits = tuple[tuple[float, float], tuple[float, float]]
"""((lowest, highest) along the first axis, the same along the second)."""


@dataclass(frozen=True)
class Line:
    """Straight pieces from point to point."""

    points: tuple[Point, ...]
    label: str = ""
    """What it shows; shapes of one label are painted alike and share an entry of the legend, "" has none."""


@dataclass(frozen=True)
class Polygon:
    """A filled area with these corners."""

    points: tuple[Point, ...]
    label: str = ""


@dataclass(frozen=True)
class Disc:
    """A filled circle."""

    centre: Point
    radius: float
    label: str = ""

    @property
    def points(self) -> tuple[Point, ...]:
        """Two opposite corners of the square around it."""
        (x, y), r = self.centre, self.radius
        return (x - r, y - r), (x + r, y + r)


@dataclass(frozen=True)
class Cross:
    """A mark at a point, of the same size at any scale."""

    centre: Point
    label: str = ""

    @property
    def points(self) -> tuple[Point, ...]:
        """The point alone."""
        return (self.centre,)


Shape = Line | Polygon | Disc | Cross


@dataclass(frozen=True)
class Drawing:
    """Shapes, later ones above earlier ones, and the part of the plane to show; a film shows what its frames show."""

    shapes: tuple[Shape, ...]
    limits: Limits

    @classmethod
    def around(cls, shapes: Iterable[Shape], margin: float) -> Drawing:
        """The shapes with limits `margin` beyond all of them."""
        shapes = tuple(shapes)
        points = np.asarray([point for shape in shapes for point in shape.points], float)
        (left, low), (right, high) = points.min(axis=0) - margin, points.max(axis=0) + margin
        return cls(shapes, ((float(left), float(right)), (float(low), float(high))))
