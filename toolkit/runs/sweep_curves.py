"""How the members of a sweep learned: one metric along the updates, a curve per member.

The labels of one axis have a colour each, those of another a line style; of an axis of seeds the median and the range
are shown. The metric is the first of those that judge a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator, NullFormatter

from toolkit.runs import names, panels
from toolkit.runs.directory import RunDirectory
from toolkit.runs.plots import save_figure
from toolkit.runs.sweep_axes import KEY
from toolkit.runs.sweep_plot import DECADE, judging, layout_of
from toolkit.runs.sweeps import open_sweep

STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Kinds:
    """Which axes of a sweep tell curves apart, and how."""

    color: str | None
    style: str | None
    spread: tuple[str, ...]


def write_sweep_curves(path: Path) -> Path | None:
    """Draw `plots/sweep_curves.png` of a sweep's directory; None where its curves could not be told apart or nothing
    is known along the updates."""
    folder = RunDirectory(path).plots
    with open_sweep(path) as dataset:
        kinds = kinds_of(dataset)
        metric = _metric(dataset)
        if kinds is None or metric is None:
            return None
        figure = curves_figure(dataset, metric, kinds)
    folder.mkdir(exist_ok=True)
    return save_figure(figure, folder / "sweep_curves.png")


def _metric(dataset: xr.Dataset) -> str | None:
    """The metric to show: the validation loss, or else the first that judges; None without two recorded steps."""
    known = judging(dataset)
    name = "validation_loss" if "validation_loss" in known else next(iter(known), None)
    if name is None or int(dataset[name].notnull().sum(names.STEP).max()) < 2:
        return None
    return name


def kinds_of(dataset: xr.Dataset) -> Kinds | None:
    """A colour per label of the axis with most labels, a line style per label of the other; None where there are more
    axes, or more labels than can be told apart."""
    spread = layout_of(dataset).spread
    axes = [str(dim) for dim in dataset.dims if dim != names.STEP and dim not in spread and dataset.sizes[dim] > 1]
    axes.sort(key=lambda axis: -dataset.sizes[axis])
    limits = (len(panels.COLORS), len(STYLES))
    if len(axes) > len(limits) or any(dataset.sizes[axis] > n for axis, n in zip(axes, limits, strict=False)):
        return None
    color, style, *_ = [*axes, None, None]
    return Kinds(color, style, spread)


def curves_figure(dataset: xr.Dataset, name: str, kinds: Kinds) -> Figure:
    """The picture of one metric of a combined Dataset."""
    metric = dataset[name].squeeze([d for d in dataset[name].dims if d != names.STEP and dataset.sizes[d] == 1])
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.subplots()
    for curve, color, style in _curves(metric, kinds):
        _draw(axes, curve, kinds.spread, color, style)
    _scale(axes, metric)
    axes.set_xlabel("updates", fontsize=panels.NORMAL, color=panels.INK)
    axes.set_ylabel(panels.label(metric).partition(",")[0], fontsize=panels.NORMAL, color=panels.INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(which="major", linewidth=0.4, color="#cccccc")
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    panels.style(axes)
    _legends(figure, dataset, kinds)
    panels.title(figure, dataset)
    if kinds.spread:
        text = f"median and range over {', '.join(kinds.spread)}"
        figure.supxlabel(text, fontsize=panels.SMALL, color=panels.INK)
    return figure


def _curves(metric: xr.DataArray, kinds: Kinds) -> Iterator[tuple[xr.DataArray, str, str]]:
    for i in range(metric.sizes[kinds.color] if kinds.color else 1):
        for k in range(metric.sizes[kinds.style] if kinds.style else 1):
            at = {axis: n for axis, n in ((kinds.color, i), (kinds.style, k)) if axis}
            yield metric.isel(at), panels.COLORS[i], STYLES[k]


def _draw(axes: Axes, curve: xr.DataArray, spread: tuple[str, ...], color: str, style: str) -> None:
    recorded = curve.dropna(names.STEP, how="all")
    dims = [axis for axis in spread if axis in recorded.dims]
    middle = recorded.median(dims) if dims else recorded
    steps = recorded[names.STEP].values
    axes.plot(steps, middle.values, style, color=color, linewidth=1.3)
    if dims:
        low, high = recorded.min(dims).values, recorded.max(dims).values
        axes.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)


def _scale(axes: Axes, metric: xr.DataArray) -> None:
    finite = metric.values[np.isfinite(metric.values)]
    if finite.min() > 0 and finite.max() > DECADE * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatterSciNotation())
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legends(figure: Figure, dataset: xr.Dataset, kinds: Kinds) -> None:
    """One list of both axes beside the panel, each under the name of its key."""
    handles: list[Line2D] = []
    for axis in (kinds.color, kinds.style):
        if axis is None:
            continue
        heading = str(dataset[axis].attrs.get(KEY, axis))
        handles.append(Line2D([], [], linestyle="", label=heading))
        for i, label in enumerate(dataset[axis].values):
            color = panels.COLORS[i] if axis == kinds.color else panels.INK
            style = "-" if axis == kinds.color else STYLES[i]
            text = str(label) if isinstance(label, str) else f"{label:g}"
            handles.append(Line2D([], [], color=color, linestyle=style, linewidth=1.3, label=text))
    if handles:
        legend = figure.legend(handles=handles, loc="outside right upper", fontsize=panels.SMALL, frameon=False)
        for handle, text in zip(handles, legend.get_texts(), strict=True):
            text.set_fontweight("bold" if handle.get_linestyle() == "None" else "normal")
