"""Line plots as numbers for the page's SVG: curves in a box of 1000 × 1000, ticks with their texts.

The template draws them; colours are those of the page, so that they follow its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

BOX = 1000
"""Width and height of the box that curves are drawn in."""
MAX_POINTS = 600
"""Longer curves are shown by the extremes of neighbouring points."""
FEW = 40
"""Up to so many points, each has a dot."""
MANY = 120
COLOURS = 7
"""Colours that the page tells apart."""
DASHES = ("", "7 4", "2 3")
DECADE = 10.0


@dataclass(frozen=True)
class Curve:
    """One line: its points, and where it stands for several runs the range around it."""

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    number: int = 0
    """Chooses colour and dashes."""
    joined: bool = True
    """False: points alone."""


@dataclass(frozen=True)
class Line:
    """A curve as the page draws it."""

    label: str
    path: str
    dots: str
    band: str
    number: int
    dash: str
    fine: bool
    """Drawn thin: many points, which are likely to scatter."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in the box and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Plot:
    """One picture: everything in the coordinates of the box, y downwards."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    alt: str


class Axis:
    """From values to places in the box, linear or logarithmic."""

    def __init__(self, values: np.ndarray, log: bool = False, margin: float = 0.0, whole: bool = False):
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        self.log, self.whole = log and low > 0, whole
        if low == high:
            spread = abs(low) * 0.1 or 1.0
            low, high = (low / 1.5, high * 1.5) if self.log else (low - spread, high + spread)
        start, end = (math.log10(low), math.log10(high)) if self.log else (low, high)
        self.start, self.end = start - margin * (end - start), end + margin * (end - start)

    def places(self, values: np.ndarray) -> np.ndarray:
        """Places along the axis, from 0 to BOX; NaN where a value has none."""
        array = np.asarray(values, float)
        array = np.where(np.isfinite(array), array, np.nan)
        if self.log:
            array = np.log10(np.where(array > 0, array, np.nan))
        return (array - self.start) / (self.end - self.start) * BOX

    def ticks(self, count: int = 6) -> list[Tick]:
        """Round values with their texts."""
        values = self._logarithmic() if self.log else []
        if len(values) < 2:
            low, high = (10**self.start, 10**self.end) if self.log else (self.start, self.end)
            nice = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=self.whole).tick_values(low, high)
            values = [float(v) for v in nice if low - 1e-9 * (high - low) <= v <= high + 1e-9 * (high - low)]
            values = [v for v in values if v > 0] if self.log else values
        places = self.places(np.array(values)) if values else np.zeros(0)
        return [Tick(round(float(at), 1), number(v)) for at, v in zip(places, values, strict=True)]

    def _logarithmic(self) -> list[float]:
        first, last = math.floor(self.start), math.ceil(self.end)
        decades = last - first
        parts = (1,) if decades > 4 else (1, 3) if decades > 2 else (1, 2, 5)
        every = max(1, round(decades / 6))
        values = [p * 10.0**d for d in range(first, last + 1, every) for p in parts]
        return [v for v in values if self.start - 1e-9 <= math.log10(v) <= self.end + 1e-9]


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: few digits, a true minus sign, powers of ten raised."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = f"{0.0 if abs(value) < 1e-300 else value:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    mantissa = mantissa.replace("-", "−")
    if not exponent:
        return mantissa
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if mantissa == "1" else f"{mantissa}·10{raised}"


def draw(
    title: str, curves: Sequence[Curve], x_label: str, y_label: str, whole: bool = False, linear: bool = False
) -> Plot | None:
    """A plot of curves, logarithmic upwards where all values are positive and far apart (not so if
    `linear`); None without any point."""
    known = [curve for curve in curves if np.isfinite(curve.y).any()]
    if not known:
        return None
    heights = np.concatenate([np.ravel(a) for c in known for a in (c.y, c.low, c.high) if a is not None])
    heights = heights[np.isfinite(heights)]
    log = not linear and bool(heights.min() > 0 and heights.max() > DECADE / 2 * heights.min())
    x = Axis(np.concatenate([c.x[np.isfinite(c.y)] for c in known]), whole=whole)
    y = Axis(heights, log=log, margin=0.05)
    ticks = tuple(Tick(BOX - tick.at, tick.text) for tick in y.ticks())
    lines = tuple(_line(curve, x, y) for curve in known)
    words = f"{title}: " + "; ".join(_in_words(curve) for curve in known[:8]) + f"; along {x_label}"
    return Plot(title, x_label, y_label + (" (log)" if y.log else ""), tuple(x.ticks()), ticks, lines, words)


def _in_words(curve: Curve) -> str:
    there = np.isfinite(curve.y)
    first, last = curve.y[there][0], curve.y[there][-1]
    return f"{curve.label} from {number(float(first), 3)} to {number(float(last), 3)}"


def _line(curve: Curve, x: Axis, y: Axis) -> Line:
    across, up = x.places(curve.x), BOX - y.places(curve.y)
    band = ""
    if curve.low is not None and curve.high is not None:
        low, high = BOX - y.places(curve.low), BOX - y.places(curve.high)
        there = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
        there = there[np.linspace(0, there.size - 1, min(there.size, MAX_POINTS // 2)).astype(int)]
        edge = [*zip(across[there], low[there], strict=True), *zip(across[there][::-1], high[there][::-1], strict=True)]
        band = "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in edge) + "Z" if edge else ""
    few = not curve.joined or np.isfinite(up).sum() <= FEW
    # Strokes keep their width in a stretched box, a dot of no length stays round.
    dots = "".join(f"M{a:.1f},{b:.1f}h0" for a, b in zip(across, up, strict=True) if math.isfinite(b)) if few else ""
    dash = DASHES[curve.number // COLOURS % len(DASHES)]
    way = path(*_thinned(across, up)) if curve.joined else ""
    return Line(curve.label, way, dots, band, curve.number % COLOURS, dash, len(up) > MANY)


def path(across: np.ndarray, up: np.ndarray) -> str:
    """Points as an SVG path that is interrupted where one has no place."""
    parts, pen = [], "M"
    for a, b in zip(across, up, strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = "M"
            continue
        parts.append(f"{pen}{a:.1f},{b:.1f}")
        pen = "L"
    return "".join(parts)


def _thinned(across: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points: of each stretch the lowest and the highest, in their order."""
    if len(up) <= MAX_POINTS:
        return across, up
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(up)), MAX_POINTS // 2):
        there = stretch[np.isfinite(up[stretch])]
        if there.size:
            kept += sorted({int(there[np.argmin(up[there])]), int(there[np.argmax(up[there])])})
        else:
            kept.append(int(stretch[0]))
    return across[kept], up[kept]
