"""Pictures of a run: how it learned, and how its fields compare with the target and the truth.

Drawn with matplotlib's object interface, without a display and without touching its global state.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolkit.core.errors import StorageError
from toolkit.runs import atomic, datasets, names, panels
from toolkit.runs.comparison import controls_of, field_comparison
from toolkit.runs.datasets import Chunks
from toolkit.runs.directory import RunDirectory
from toolkit.runs.open import StoredRun
from toolkit.runs.trajectories import before_and_after, in_space, in_time, trajectories

MAX_FRAMES = 5
MAX_VARIABLES = 4


def learning_curves(metrics: xr.Dataset) -> Figure:
    """Training and validation loss against the number of updates; below them the control error if known."""
    blocks = [["train_loss", "validation_loss"], ["control_error"]]
    blocks = [[n for n in block if n in metrics and metrics[n].notnull().any()] for block in blocks]
    blocks = [block for block in blocks if block]
    if not blocks:
        raise StorageError("the run has recorded no loss yet; there is nothing to plot")
    figure = Figure(figsize=(6.0, 1.0 + 2.4 * len(blocks)), layout="constrained")
    rows = figure.subplots(len(blocks), 1, sharex=True, squeeze=False)[:, 0]
    order = ["train_loss", "validation_loss", "control_error"]
    for axes, block in zip(rows, blocks, strict=True):
        for name in block:
            _draw_metric(axes, metrics[name], panels.COLORS[order.index(name)])
        axes.set_ylabel("loss" if len(block) > 1 else panels.label(metrics[block[0]]).split(",")[0])
        axes.yaxis.label.set(fontsize=panels.NORMAL, color=panels.INK)
        axes.grid(which="major", linewidth=0.4, color="#cccccc")
        axes.grid(which="minor", linewidth=0.2, color="#e4e4e4")
        axes.legend(fontsize=panels.SMALL, frameon=False)
        panels.style(axes)
    rows[-1].set_xlabel("updates", fontsize=panels.NORMAL, color=panels.INK)
    rows[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    panels.title(figure, metrics)
    return figure


def _draw_metric(axes: Axes, metric: xr.DataArray, color: str) -> None:
    recorded = metric.dropna(names.STEP)
    positive = recorded.values > 0
    # A logarithmic axis would hide what is not positive without a word.
    if positive.size and positive.all():
        axes.set_yscale("log")
    marker = "o" if recorded.size <= 60 else ""
    steps = recorded[names.STEP].values
    text = panels.label(metric)
    axes.plot(steps, recorded.values, color=color, linewidth=1.2, marker=marker, markersize=2.5, label=text)


def simulation_frames(fields: xr.Dataset, frames: int = MAX_FRAMES) -> Figure:
    """A simulation: some frames in space, the space-time picture in one dimension, curves for an ODE."""
    known = [n for n in fields.data_vars if not str(n).endswith(names.UNTRAINED)]
    moving = [fields[n] for n in known if names.TIME in fields[n].dims][:MAX_VARIABLES]
    if not moving:
        raise StorageError(f"no variable along {names.TIME} among {', '.join(map(str, fields.data_vars))}")
    moving = [panels.sample(array, 0) for array in moving]
    spaces = [array for array in moving if len(panels.spatial_dims(array)) > 1]
    planes = bool(spaces)
    count = min(frames, fields.sizes[names.TIME]) if planes else 1
    shown = [_frames(array, count) for array in spaces or moving]
    ratio = panels.aspect(panels.section(shown[0][0])) if planes else 0.45
    width = 2.1 if planes else 6.4
    size = (width * count + 1.1, len(shown) * (0.92 * width * ratio + 0.2) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(shown), count, squeeze=False)
    for r, row in enumerate(shown):
        _draw_over_time(figure, list(grid[r]), row)
        for c in range(count if planes else 0):
            panels.tidy(grid[r, c], first=c == 0, last=r == len(shown) - 1, image=True)
            if r == 0:
                at, units = row[c][names.TIME], panels.units(row[c][names.TIME])
                text = f"$t$ = {float(at.values[0]):.4g} {units}".strip()
                grid[r, c].set_title(text, fontsize=panels.NORMAL, color=panels.INK)
    panels.title(figure, fields)
    return figure


def _draw_over_time(figure: Figure, row: list[Axes], arrays: list[xr.DataArray]) -> None:
    """One variable in one row of panels with common colours and their bar, or as curves."""
    sections = [panels.section(array).compute() for array in arrays]
    norm, cmap = panels.norm_of(sections)
    for axes, array in zip(row, sections, strict=True):
        if panels.is_image(array):
            panels.draw_image(axes, array, norm, cmap)
        else:
            panels.draw_lines(axes, [("", array)])
            axes.set_ylabel(panels.label(array), fontsize=panels.NORMAL, color=panels.INK)
            if panels.component_dim(array):
                axes.legend(fontsize=panels.SMALL, frameon=False)
    if panels.is_image(sections[0]):
        bar = figure.colorbar(row[-1].get_images()[0], ax=row, aspect=20, pad=0.01, fraction=0.05)
        bar.set_label(panels.label(sections[0]), fontsize=panels.NORMAL, color=panels.INK)
        bar.ax.tick_params(labelsize=panels.SMALL, width=0.6, length=2.5)


def write_plots(run: Path) -> list[Path]:
    """Draw what a run directory has into `plots/`; the files written, none where there is nothing to draw."""
    drawn: dict[str, Figure] = {}
    with StoredRun(run, drawing_chunks(run)) as stored:
        if stored.directory.metrics.is_file():
            metrics = stored.metrics
            if any(n in metrics and metrics[n].notnull().any() for n in ("train_loss", "validation_loss")):
                drawn["learning_curves"] = learning_curves(metrics)
        if stored.directory.stored_fields:
            controls = controls_of(stored.fields)
            for name in controls:
                drawn[f"comparison_{name}"] = field_comparison(stored.fields, name)
            if in_time(stored.fields):
                drawn["trajectories"] = trajectories(stored.fields)
            if in_space(stored.fields):
                drawn["before_and_after"] = before_and_after(stored.fields)
            if not controls and names.TIME in stored.fields.dims:
                drawn["simulation"] = simulation_frames(stored.fields)
        folder = stored.directory.plots
        if drawn:
            folder.mkdir(exist_ok=True)
        return [save_figure(figure, folder / f"{name}.png") for name, figure in drawn.items()]


def drawing_chunks(run: Path) -> Chunks:
    """How to open the fields of a run for drawing: without dask, which reads whole chunks for single frames, unless
    parts of complex numbers have to be joined."""
    path = RunDirectory(run).stored_fields
    if path is None:
        return None
    with datasets.open_raw(path) as raw:
        known = {str(name) for name in raw.data_vars}
    return None if any(name.removesuffix(names.REAL) + names.IMAGINARY in known for name in known) else False


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a whole, in the format that the suffix names; its path."""
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, dpi=panels.DPI, facecolor="white")
    return path


def _frames(array: xr.DataArray, count: int) -> list[xr.DataArray]:
    """`count` frames evenly spread over time; the whole array where one panel shows all of it."""
    if count == 1 and len(panels.spatial_dims(array)) < 2:
        return [array]
    last = array.sizes[names.TIME] - 1
    return [array.isel({names.TIME: [round(k)]}) for k in np.linspace(0, last, count)]
