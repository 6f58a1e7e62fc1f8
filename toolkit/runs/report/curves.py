"""Fields in one axis of space, and what has none: profiles, curves over time, points."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from toolkit.runs import names
from toolkit.runs.report import frames
from toolkit.runs.report.content import (
    Arrays,
    Collector,
    Moving,
    MovingCurve,
    Shown,
    axis_label,
    ends,
    joined,
    positions,
)
from toolkit.runs.report.pictures import block, shrunk
from toolkit.runs.report.plot import BOX, Axis, Curve, Plot, Tick, draw, path

MAX_PARTS = 8
MAX_POINTS = 2000
PROFILE = 160
"""Points of a profile at most."""
OVER_TIME = 1.6
"""Width over height of a picture over time."""
DASHES = {"target": "7 4", "true control": "7 4"}
"""Of what a prediction should lie on."""


def profiles(collector: Collector, shown: Shown, arrays: Arrays, axis: str) -> None:
    """Add a field along a line: profiles that follow the slider, and where it is long enough pictures over time."""
    main = frames.main(arrays)
    at = collector.selection
    along = shrunk(positions(main, axis), [PROFILE])
    if block(main.sizes[axis], PROFILE) > 1:
        shown.notes.append(f"each point is the mean of {block(main.sizes[axis], PROFILE)} cells")
    stops = [at.columns.index(k) for k in at.frames]
    for text, pick in _parts(shown, main).items():
        # Read once: the slider stops at some of the columns.
        whole = {
            role: collector.read(array, lambda values, pick=pick: shrunk(pick(values), [PROFILE]), at.columns)
            for role, array in arrays.items()
        }
        still = {role: v[:, stops] if collector.moves(arrays[role]) else v for role, v in whole.items()}
        shown.plots.append(_moving(collector, text or shown.label, still, along, axis_label(main, axis)))
        if at.dim == names.TIME and len(at.columns) > 2 and text in ("", "modulus"):
            over = {collector.title(r): v[:, None] for r, v in whole.items() if collector.moves(arrays[r])}
            axes = (ends(main, names.TIME), ends(main, axis))
            label = joined(shown.label, text)
            shown.pictures.append(collector.pictures(shown, over, OVER_TIME, axes, label, cursor=True))


def course(array: xr.DataArray) -> str | None:
    """The dimension that curves run along: time, or else updates; None where there are but two moments."""
    return next((dim for dim in (names.TIME, names.STEP) if array.sizes.get(dim, 0) > 2), None)


def courses(collector: Collector, shown: Shown, arrays: Arrays, along: str) -> None:
    """Add numbers along time or updates, one plot per component."""
    main = frames.main(arrays)
    slider = along == collector.selection.dim
    values = positions(main, along)
    columns = collector.selection.columns if slider else tuple(frames.even(len(values), frames.COLUMNS))
    for text, pick in _parts(shown, main).items():
        read = {}
        for role, array in arrays.items():
            if along not in array.dims:
                # A number to be reached is a level.
                level = collector.read(array, pick)
                read[role] = np.repeat(level[..., None], len(columns), axis=-1)
            elif slider:
                read[role] = collector.read(array, pick, columns)[:, None]
            else:
                read[role] = collector.read(array.isel({along: list(columns)}), pick)
        plot = _moving(collector, text or shown.label, read, values[list(columns)], axis_label(main, along), slider)
        shown.plots.append(plot)


def points(collector: Collector, shown: Shown, arrays: Arrays) -> None:
    """Add numbers that lie along nothing but samples, against the truth where it is known."""
    main = frames.main(arrays)
    truth = next((role for role in ("true control", "target") if role in arrays), None)
    for text, pick in _parts(shown, main).items():
        read = {role: np.ravel(pick(_at_end(array)))[:MAX_POINTS].astype(float) for role, array in arrays.items()}
        place = read[truth] if truth else np.arange(read[next(iter(read))].size, dtype=float)
        label = text or shown.label
        curves = [
            Curve(collector.title(role), place, values, number=frames.NUMBERS[role], joined=False)
            for role, values in read.items()
            if role != truth and values.size == place.size
        ]
        if truth and np.isfinite(place).any():
            reach = np.array([np.nanmin(place), np.nanmax(place)])
            curves.append(Curve("as it should be", reach, reach, number=6))
        plot = draw(label, curves, f"{truth}" if truth else "sample", label, linear=True)
        if plot is not None:
            shown.points.append(plot)


def _at_end(array: xr.DataArray) -> np.ndarray:
    last = {dim: -1 for dim in (names.TIME, names.STEP) if dim in array.dims}
    return np.asarray(array.isel(last).values)


def _parts(shown: Shown, array: xr.DataArray) -> Mapping[str, frames.Reduce]:
    """The first parts of an array; a note where there are more."""
    found = frames.parts(array)
    if len(found) > MAX_PARTS:
        shown.notes.append(f"{len(found) - MAX_PARTS} more components are not shown")
    return dict(list(found.items())[:MAX_PARTS])


def _moving(
    collector: Collector, label: str, read: Mapping[str, np.ndarray], x: np.ndarray, x_label: str, cursor: bool = False
) -> Moving:
    """Curves (sample, frame, position) by role in one plot, whose limits hold for all frames."""
    up = Axis(np.concatenate([np.ravel(values) for values in read.values()]), margin=0.05)
    across = Axis(x)
    places = [round(float(v)) for v in across.places(x)]
    made = []
    for role, values in read.items():
        name = collector.id()
        heights = [[_whole(BOX - up.places(frame)) for frame in sample] for sample in values]
        collector.curves[name] = {"x": places, "y": heights}
        first = path(np.array(places, float), np.array(heights[0][-1], float))
        made.append(MovingCurve(name, collector.title(role), first, frames.NUMBERS[role], DASHES.get(role, "")))
    listed = ", ".join(curve.title for curve in made)
    ticks = tuple(Tick(BOX - tick.at, tick.text) for tick in up.ticks())
    plot = Plot(label, x_label, label, tuple(across.ticks()), ticks, (), f"{label} along {x_label}: {listed}")
    name = collector.id()
    if cursor:
        collector.cursors.append(name)
    return Moving(name, plot, made, cursor)


def _whole(places: np.ndarray) -> list[int | None]:
    return [round(float(v)) if np.isfinite(v) else None for v in places]
