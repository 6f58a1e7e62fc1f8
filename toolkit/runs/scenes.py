"""Moving pictures of a plugin's drawings: how shapes are painted, panel by panel and frame by frame.

Colours belong to labels and marks (crosses) have the colour of the ink; behind a disc stays a trail of where it was.
All panels show the same part of the plane, the union of what the frames show, at one scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patches import Polygon as Area
from matplotlib.ticker import MaxNLocator

from toolkit.physics.drawing import Cross, Disc, Drawing, Limits, Line, Polygon, Shape
from toolkit.runs import panels

SIDE = 3.6
"""Inches of a panel's longer side; of panels one below the other, which are wide, twice as many."""
SMALLEST = 1.0
WIDE = 2.5
"""Width over height from which panels stand one below the other."""
TRAIL = 15
"""Frames over which a trail reaches back."""


@dataclass(frozen=True)
class Scene:
    """What one panel shows, frame by frame."""

    title: str
    frames: tuple[Drawing, ...]


def union(scenes: Sequence[Scene]) -> Limits:
    """The part of the plane that holds the limits of all frames."""
    every = np.asarray([drawing.limits for scene in scenes for drawing in scene.frames], float)
    low, high = every[..., 0].min(axis=0), every[..., 1].max(axis=0)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def labels(scenes: Sequence[Scene]) -> dict[str, Shape]:
    """The first shape of each label, in order of appearance."""
    found: dict[str, Shape] = {}
    for shape in (s for scene in scenes for drawing in scene.frames for s in drawing.shapes):
        if shape.label:
            found.setdefault(shape.label, shape)
    return found


def scene_drawer(figure: Figure, scenes: Sequence[Scene], titles: Sequence[str]) -> Callable[[int], list[Artist]]:
    """Lay out one panel per scene; what paints frame i, under its title."""
    limits = union(scenes)
    known = labels(scenes)
    colors = _colors(known)
    every = _panels(figure, len(scenes), limits)
    for axes, scene in zip(every, scenes, strict=True):
        _frame(axes, scene.title, limits)
    if known:
        handles = [_sample(label, shape, colors[label]) for label, shape in known.items()]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(handles),
            fontsize=panels.NORMAL,
            frameon=False,
        )
    heading = figure.suptitle(titles[0], fontsize=panels.LARGE, color=panels.INK)
    # Laid out once: nothing changes its size from frame to frame.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    painted: list[Artist] = []

    def draw(i: int) -> list[Artist]:
        for artist in painted:
            artist.remove()
        painted.clear()
        for axes, scene in zip(every, scenes, strict=True):
            painted.extend(_trails(axes, scene.frames[max(0, i - TRAIL) : i + 1], colors))
            shown = scene.frames[i].shapes
            painted.extend(_paint(axes, shape, colors, 3 + k / len(shown)) for k, shape in enumerate(shown))
        heading.set_text(titles[i])
        return painted

    return draw


def _panels(figure: Figure, count: int, limits: Limits) -> list[Axes]:
    """Panels side by side, wide ones below each other, in a figure that fits their proportions."""
    (left, right), (low, high) = limits
    width, height = right - left, high - low
    stacked = width > WIDE * height
    side = 2 * SIDE if stacked else SIDE
    scale = side / max(width, height)
    across, down = max(SMALLEST, scale * width), max(SMALLEST, scale * height)
    rows, columns = (count, 1) if stacked else (1, count)
    figure.set_size_inches(columns * (across + 0.25) + 0.45, rows * (down + 0.45) + 0.8)
    return list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel())


def decimals(times: Sequence[float] | np.ndarray) -> int:
    """Digits behind the point that tell neighbouring times apart."""
    gaps = np.diff(np.asarray(times, float))
    smallest = float(gaps[gaps > 0].min()) if (gaps > 0).any() else 1.0
    # Rounded, because the difference of 0.36 and 0.35 is a little less than 0.01.
    return max(0, math.ceil(-round(math.log10(smallest), 6)))


def _colors(known: dict[str, Shape]) -> dict[str, str]:
    filled = [label for label, shape in known.items() if not isinstance(shape, Cross)]
    return {"": panels.INK, **dict.fromkeys(known, panels.INK)} | {
        label: panels.COLORS[k % len(panels.COLORS)] for k, label in enumerate(filled)
    }


def _frame(axes: Axes, title: str, limits: Limits) -> None:
    axes.set_aspect("equal")
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    axes.set_title(title, fontsize=panels.NORMAL, color=panels.INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(linewidth=0.3, color="#cccccc")
    axes.set_axisbelow(True)
    panels.style(axes)


def _paint(axes: Axes, shape: Shape, colors: dict[str, str], zorder: float) -> Artist:
    color = colors[shape.label]
    match shape:
        case Disc():
            return axes.add_patch(Circle(shape.centre, shape.radius, color=color, linewidth=0, zorder=zorder))
        case Polygon():
            return axes.add_patch(Area(shape.points, color=color, linewidth=0, zorder=zorder))
        case Line():
            x, y = zip(*shape.points, strict=True)
            return axes.plot(x, y, color=color, linewidth=2.2, solid_capstyle="round", zorder=zorder)[0]
        case Cross():
            x, y = shape.centre
            return axes.plot([x], [y], "x", color=color, markersize=8, markeredgewidth=1.6, zorder=zorder)[0]


def _trails(axes: Axes, drawings: Sequence[Drawing], colors: dict[str, str]) -> list[Artist]:
    """Where the discs of the last drawing have been, as far back as there were as many."""
    discs = [[shape for shape in drawing.shapes if isinstance(shape, Disc)] for drawing in drawings]
    now = discs[-1]
    ways = [[at[k].centre for at in discs if len(at) == len(now)] for k in range(len(now))]
    return [
        axes.plot(*zip(*way, strict=True), color=colors[disc.label], linewidth=1.2, alpha=0.35, zorder=2)[0]
        for disc, way in zip(now, ways, strict=True)
    ]


def _sample(label: str, shape: Shape, color: str) -> Line2D:
    marker = {Disc: "o", Polygon: "s", Cross: "x", Line: ""}[type(shape)]
    line = "-" if isinstance(shape, Line) else ""
    return Line2D([], [], color=color, marker=marker, linestyle=line, linewidth=2.2, markersize=6, label=label)
