"""What the page shows of fields, and the collector that reads it: everything under one slider and one choice of sample.

Pictures and curves have ids; their frames, by sample and stop of the slider, go to the page's script as plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from toolkit.runs import names
from toolkit.runs.report import frames
from toolkit.runs.report.frames import Selection
from toolkit.runs.report.pictures import PNG, Scale, encode, scale_of, upright
from toolkit.runs.report.plot import Plot, Tick, number

Ends = tuple[str, str, str]
"""An axis: its name, its lower and its upper end."""
Arrays = Mapping[str, xr.DataArray]
"""By role."""


@dataclass(frozen=True)
class Panel:
    """One picture, as the page opens with it."""

    id: str
    title: str
    source: str
    """Data URI."""
    text: str
    alt: str
    cursor: bool


@dataclass(frozen=True)
class Pictures:
    """Panels with common colours and axes."""

    panels: list[Panel]
    bar: str
    """Data URI of the colours."""
    ticks: list[Tick]
    label: str
    ratio: float
    """Width over height."""
    across: Ends
    up: Ends
    size: int
    """Pixels of a square panel on the page."""

    @property
    def wide(self) -> int:
        """Pixels of a panel's width on the page; tall ones are narrower."""
        return round(max(120, self.size * self.ratio ** (0.3 if self.ratio > 1 else 0.6)))


@dataclass(frozen=True)
class MovingCurve:
    """One line of a plot, as the page opens with it."""

    id: str
    title: str
    first: str
    """SVG path."""
    number: int
    dash: str


@dataclass(frozen=True)
class Moving:
    """A plot whose curves follow the slider, or over which a cursor follows it."""

    id: str
    plot: Plot
    """Axes without lines."""
    curves: list[MovingCurve]
    cursor: bool


@dataclass
class Shown:
    """All of one field or control."""

    name: str
    label: str
    notes: list[str] = field(default_factory=list)
    pictures: list[Pictures] = field(default_factory=list)
    plots: list[Moving] = field(default_factory=list)
    points: list[Plot] = field(default_factory=list)

    @property
    def single(self) -> bool:
        """Whether it is one picture or one plot, which leaves room for another field beside it."""
        return sum(len(block.panels) for block in self.pictures) + len(self.plots) + len(self.points) == 1


class Collector:
    """Reads fields under one selection, and keeps what the page's script needs."""

    def __init__(self, fields: xr.Dataset, selection: Selection, simulated: bool):
        self.fields, self.selection = fields, selection
        self._simulated = simulated
        self.images: dict[str, Any] = {}
        self.curves: dict[str, Any] = {}
        self.cursors: list[str] = []
        self._count = 0

    def id(self) -> str:
        """A new id."""
        self._count += 1
        return f"v{self._count}"

    def title(self, role: str) -> str:
        """What a role is called; nothing is predicted in a plain simulation."""
        return "simulation" if role == frames.PREDICTION and self._simulated else role

    def moves(self, array: xr.DataArray) -> bool:
        """Whether an array changes with the slider."""
        return self.selection.dim is not None and self.selection.dim in array.dims

    def read(
        self, array: xr.DataArray, reduce: Callable[[np.ndarray], np.ndarray], at: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """(sample, frame, …) at the stops of the slider, or at other frames."""
        return frames.read(array, self.selection, at or self.selection.frames, reduce)

    def pictures(
        self,
        shown: Shown,
        read: Mapping[str, np.ndarray],
        ratio: float,
        axes: tuple[Ends, Ends],
        label: str = "",
        difference: bool = False,
        cursor: bool = False,
    ) -> Pictures:
        """Panels of arrays (sample, frame, across, up) by title."""
        scale = scale_of(list(read.values()), difference)
        size = 430 if len(read) == 1 and not difference and not cursor else 290
        made = [self._panel(f"{shown.label}: {title}", title, v, scale, cursor) for title, v in read.items()]
        label = f"difference of {shown.label}" if difference else label or shown.label
        return Pictures(made, PNG + scale.bar(), scale.ticks(), label, ratio, *axes, size)

    def _panel(self, alt: str, title: str, values: np.ndarray, scale: Scale, cursor: bool) -> Panel:
        palette = scale.palette()
        sources = [[encode(upright(scale.indices(frame)), palette) for frame in sample] for sample in values]
        texts = [[extremes(frame) for frame in sample] for sample in values]
        name = self.id()
        self.images[name] = {"src": sources, "text": texts, "alt": alt}
        if cursor:
            self.cursors.append(name)
        return Panel(name, title, PNG + sources[0][-1], texts[0][-1], alt, cursor)

    def stops(self) -> list[str]:
        """The values at which the slider stops."""
        if self.selection.dim is None:
            return []
        values = self.fields[self.selection.dim].values
        return [number(float(values[k]), 5) for k in self.selection.frames]

    def cursor_places(self) -> list[float]:
        """Where these are between the first and the last value, from 0 to 1."""
        if self.selection.dim is None:
            return []
        values = np.asarray(self.fields[self.selection.dim].values, float)
        reach = float(values[-1] - values[0]) or 1.0
        return [round(float(values[k] - values[0]) / reach, 5) for k in self.selection.frames]

    def data(self) -> dict[str, Any]:
        """For the page's script."""
        dim = self.selection.dim
        word = {None: "", names.STEP: "update", names.TIME: names.TIME}[dim]
        return {
            "word": word,
            "stops": self.stops(),
            "places": self.cursor_places(),
            "samples": self.selection.samples or 1,
            "images": self.images,
            "curves": self.curves,
            "cursors": self.cursors,
        }


def extremes(values: np.ndarray) -> str:
    """The least, the largest and the mean value of a picture, and how much of it has none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "without value"
    low, high, middle = float(finite.min()), float(finite.max()), float(finite.mean())
    # A mean that is but rounding.
    middle = 0.0 if abs(middle) < 1e-12 * max(abs(low), abs(high)) else middle
    least, most, mean = number(low, 3), number(high, 3), number(middle, 3)
    missing = values.size - finite.size
    said = f"{least} to {most}, mean {mean}"
    return f"{said}, {100 * missing / values.size:.2g} % without value" if missing else said


def ends(array: xr.DataArray, dim: str) -> Ends:
    """The outer ends of the cells along a dimension; of time and of faces the first and last value."""
    units = str(array[dim].attrs.get("units", "1")) if dim in array.coords else "1"
    name = dim if units == "1" else f"{dim} [{units}]"
    values = positions(array, dim)
    half = (values[-1] - values[0]) / (len(values) - 1) / 2 if len(values) > 1 else 0.5
    half = half if dim in names.SPACE else 0.0
    return name.replace("_face", " (faces)"), number(float(values[0] - half)), number(float(values[-1] + half))


def positions(array: xr.DataArray, dim: str) -> np.ndarray:
    """Coordinates along a dimension, or numbers of cells."""
    return array[dim].values.astype(float) if dim in array.coords else np.arange(array.sizes[dim], dtype=float)


def axis_label(array: xr.DataArray, dim: str) -> str:
    """A dimension in words, with its units."""
    units = str(array[dim].attrs.get("units", "1")) if dim in array.coords else "1"
    word = "updates" if dim == names.STEP else dim.replace("_face", " (faces)")
    return word if units == "1" else f"{word} [{units}]"


def joined(*words: str) -> str:
    """Words that are there, with commas."""
    return ", ".join(filter(None, words))


def span(array: xr.DataArray, axes: Sequence[str]) -> float:
    """Width over height of two axes of space, within what fits a page."""
    reach = [float(np.ptp(positions(array, a))) * array.sizes[a] / max(1, array.sizes[a] - 1) or 1.0 for a in axes]
    return min(4.0, max(0.25, reach[0] / reach[1]))
