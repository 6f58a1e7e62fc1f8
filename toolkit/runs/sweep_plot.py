"""The picture of a sweep: what its members ended at, against a numeric axis or by label.

One panel per metric that judges a run (the control metrics, the control error, the validation loss). What is shown is
the mean over the last tenth of a member's steps, since single validations scatter. A numeric axis runs to the right,
the labels of the other axes have a line each; of an axis of seeds the median and the range are shown.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatterSciNotation, MaxNLocator, NullFormatter

from toolkit.core.errors import StorageError
from toolkit.runs import names, panels
from toolkit.runs.directory import RunDirectory
from toolkit.runs.plots import MAX_VARIABLES, save_figure
from toolkit.runs.sweep_axes import COMPILE_SECONDS, KEY, MISSING
from toolkit.runs.sweeps import open_sweep

LAST = 0.1
"""Fraction of the steps, at the end, over which values are averaged."""
MAX_LINES = 21
DECADE = 10.0
SEED = "seed"
_MARKERS = ("o", "s", "^")
_BY_THE_WAY = {"train_loss", "wall_seconds", "step_seconds", "direction_norm", COMPILE_SECONDS}


@dataclass(frozen=True)
class Layout:
    """Which axis of a sweep is drawn how."""

    horizontal: str
    """The dimension to the right."""
    lines: tuple[str, ...]
    """Dimensions whose labels have a line each."""
    spread: tuple[str, ...]
    """Seeds: shown by median and range."""


def write_sweep_plot(path: Path) -> Path:
    """Draw `plots/sweep.png` of a sweep's directory; StorageError where there is nothing to draw."""
    folder = RunDirectory(path).plots
    with open_sweep(path) as dataset:
        figure = sweep_figure(dataset)
    folder.mkdir(exist_ok=True)
    return save_figure(figure, folder / "sweep.png")


def judging(dataset: xr.Dataset) -> list[str]:
    """The metrics by which runs are compared: measured on validation samples, or else what was monitored."""
    recorded = [str(n) for n, v in dataset.data_vars.items() if names.STEP in v.dims and v.notnull().any()]
    controls = [n for n in recorded if f"train_{n}" in dataset and n != "control_error"]
    known = [n for n in ("control_error", "validation_loss") if n in recorded]
    others = [n for n in recorded if n not in _BY_THE_WAY and not n.startswith("train_")]
    return ([*controls, *known] or others or [n for n in recorded if n == "train_loss"])[:MAX_VARIABLES]


def final_values(metric: xr.DataArray) -> xr.DataArray:
    """The mean over the last tenth of the steps that each member has recorded."""
    steps = metric[names.STEP]
    last = steps.where(metric.notnull()).max(names.STEP)
    return metric.where(steps >= (1 - LAST) * last).mean(names.STEP).assign_attrs(metric.attrs)


def layout_of(dataset: xr.Dataset) -> Layout:
    """The numeric axis with most values to the right, failing that the axis with most labels."""
    axes = [str(dim) for dim in dataset.dims if dim != names.STEP]
    seeds = [axis for axis in axes if axis.rpartition("_")[2] == SEED and _numeric(dataset, axis)]
    spread = tuple(seeds if len(seeds) < len(axes) else seeds[1:])
    rest = [axis for axis in axes if axis not in spread]
    numeric = [axis for axis in rest if _numeric(dataset, axis) and dataset.sizes[axis] > 1]
    horizontal = max(numeric or rest, key=lambda axis: dataset.sizes[axis])
    return Layout(horizontal, tuple(axis for axis in rest if axis != horizontal), spread)


def _numeric(dataset: xr.Dataset, axis: str) -> bool:
    return dataset[axis].dtype.kind in "iuf"


def sweep_figure(dataset: xr.Dataset) -> Figure:
    """The picture of a combined Dataset; StorageError if no member has recorded anything."""
    shown = judging(dataset)
    if not shown:
        raise StorageError("no member of the sweep has recorded a metric; there is nothing to plot")
    layout = layout_of(dataset)
    figure = Figure(figsize=(6.8, 1.0 + 2.5 * len(shown)), layout="constrained")
    rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    left_out = 0
    for axes, name in zip(rows, shown, strict=True):
        left_out = _draw(axes, final_values(dataset[name]), layout)
        axes.set_ylabel(_label(dataset[name]), fontsize=panels.NORMAL, color=panels.INK)
        panels.style(axes)
    _horizontal_axis(rows[-1], dataset, layout)
    _legend(figure, rows[0], layout, left_out)
    panels.title(figure, dataset)
    figure.supxlabel(_footnote(dataset), fontsize=panels.SMALL, color=panels.INK)
    return figure


def _draw(axes: Axes, values: xr.DataArray, layout: Layout) -> int:
    """Draw one metric; how many lines there was no room for."""
    curves = list(_curves(values, layout))
    for number, (text, curve) in enumerate(curves[:MAX_LINES]):
        _draw_curve(axes, text, curve, layout, number, len(curves))
    positive = values.values[np.isfinite(values.values)]
    if positive.size and positive.min() > 0 and positive.max() > DECADE * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatterSciNotation())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", linewidth=0.4, color="#cccccc")
    axes.set_axisbelow(True)
    return max(0, len(curves) - MAX_LINES)


def _curves(values: xr.DataArray, layout: Layout) -> Iterator[tuple[str, xr.DataArray]]:
    """(name, values along the horizontal axis and the seeds) of each line."""
    labels = [values[axis].values for axis in layout.lines]
    for chosen in itertools.product(*labels):
        place = dict(zip(layout.lines, chosen, strict=True))
        words = [str(v) if isinstance(v, str) else f"{axis} = {v:g}" for axis, v in place.items()]
        yield ", ".join(words), values.sel(place)


def _draw_curve(axes: Axes, text: str, curve: xr.DataArray, layout: Layout, number: int, count: int) -> None:
    numeric = curve[layout.horizontal].dtype.kind in "iuf"
    position = np.arange(curve.sizes[layout.horizontal], dtype=float)
    if numeric:
        position = curve[layout.horizontal].values.astype(float)
    elif count > 1:
        # Dots of different lines over one label stand side by side.
        position += 0.5 * ((number + 0.5) / min(count, MAX_LINES) - 0.5)
    color = panels.COLORS[number % len(panels.COLORS)]
    marker = _MARKERS[number // len(panels.COLORS) % len(_MARKERS)]
    middle = curve.median(layout.spread) if layout.spread else curve
    axes.plot(
        *(position, middle.values, marker),
        linestyle="-" if numeric else "",
        color=color,
        label=text or None,
        linewidth=1.2,
        markersize=3.5 if numeric else 5.0,
    )
    if layout.spread:
        low, high = curve.min(layout.spread).values, curve.max(layout.spread).values
        if numeric:
            axes.fill_between(position, low, high, color=color, alpha=0.15, linewidth=0)
        else:
            axes.vlines(position, low, high, color=color, linewidth=1.2)


def _horizontal_axis(axes: Axes, dataset: xr.Dataset, layout: Layout) -> None:
    coordinate = dataset[layout.horizontal]
    key = str(coordinate.attrs.get(KEY, layout.horizontal))
    text = key + panels.bracketed(str(coordinate.attrs.get("units", "1")))
    axes.set_xlabel(text, fontsize=panels.NORMAL, color=panels.INK)
    if not _numeric(dataset, layout.horizontal):
        long = sum(len(str(label)) for label in coordinate.values) > 60
        axes.set_xticks(range(coordinate.size), [str(label) for label in coordinate.values])
        axes.tick_params(axis="x", rotation=30 if long else 0)
        axes.set_xlim(-0.6, coordinate.size - 0.4)
        return
    values = coordinate.values.astype(float)
    if values.min() > 0 and values.max() > DECADE * values.min():
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        if np.diff(np.log(values)).min() > 0.05 * np.log(values[-1] / values[0]):
            axes.xaxis.set_major_locator(FixedLocator(list(values)))
            axes.xaxis.set_minor_locator(FixedLocator([]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    else:
        whole = coordinate.dtype.kind in "iu"
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=whole, steps=[1, 2, 2.5, 5, 10]))


def _legend(figure: Figure, axes: Axes, layout: Layout, left_out: int) -> None:
    """Names of the lines, beside the panels, where they hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    heading = " · ".join(layout.lines) + (f"\n({left_out} more not shown)" if left_out else "")
    legend = figure.legend(
        handles, labels, loc="outside right upper", fontsize=panels.SMALL, frameon=False, title=heading
    )
    legend.get_title().set(fontsize=panels.SMALL, color=panels.INK)


def _footnote(dataset: xr.Dataset) -> str:
    parts = [f"mean over samples and the last {100 * LAST:.0f} % of the steps"]
    spread = layout_of(dataset).spread
    if spread:
        parts.append(f"median and range over {', '.join(spread)}")
    missing = len(json.loads(str(dataset.attrs.get(MISSING, "{}"))))
    if missing:
        parts.append(f"{missing} member{'s' if missing > 1 else ''} missing")
    return " · ".join(parts)


def _label(metric: xr.DataArray) -> str:
    """Long name without what it is averaged over, with units, on lines no longer than a panel is high."""
    name = str(metric.attrs.get("long_name", metric.name)).partition(",")[0]
    return textwrap.fill(name, 34) + panels.bracketed(str(metric.attrs.get("units", "1")))
