"""An animation of a run's fields along time or along the steps of an optimisation, as a GIF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toolkit.core.errors import StorageError
from toolkit.runs import atomic, names, panels
from toolkit.runs.open import open_run

MAX_FRAMES = 100
FRAMES_PER_SECOND = 12
DPI = 100


def write_film(run: Path) -> Path:
    """Write `plots/film.gif` of the first field that changes along `t` or `step`; its path."""
    with open_run(run) as stored:
        array, dim = _moving(stored.fields)
        count = array.sizes[dim]
        chosen = np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).astype(int))
        frames = [panels.sample(array, 0).isel({dim: int(i)}).load() for i in chosen]
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    # FuncAnimation draws on a canvas; Agg needs no display.
    FigureCanvasAgg(figure)
    draw = _image_drawer(figure, frames, dim) if frames[0].ndim >= 2 else _line_drawer(figure, frames, dim)
    animation = FuncAnimation(figure, draw, frames=len(frames), interval=1000 / FRAMES_PER_SECOND, blit=False)
    path = run / "plots" / "film.gif"
    path.parent.mkdir(exist_ok=True)
    with atomic.replacing(path) as temporary:
        animation.save(temporary, writer=PillowWriter(fps=FRAMES_PER_SECOND), dpi=DPI)
    return path


def _moving(fields: xr.Dataset) -> tuple[xr.DataArray, str]:
    for dim in (names.TIME, names.STEP):
        for name in fields.data_vars:
            if dim in fields[name].dims and fields.sizes[dim] > 1:
                return fields[name], dim
    raise StorageError(f"nothing to animate: no field along {names.TIME} or {names.STEP} with more than one frame")


def _image_drawer(figure: Figure, frames: list[xr.DataArray], dim: str):
    sections = [panels.section(frame) for frame in frames]
    norm, cmap = panels.norm_of(sections)
    axes = figure.subplots()
    first = sections[0]
    dims = [str(d) for d in first.dims]
    extent = [float(v) for d in dims for v in _edges(first[d].values)]
    image = axes.imshow(
        first.values.T,
        origin="lower",
        extent=(extent[0], extent[1], extent[2], extent[3]),
        norm=norm,
        cmap=cmap,
    )
    axes.set_xlabel(dims[0])
    axes.set_ylabel(dims[1])
    figure.colorbar(image, ax=axes, label=panels.label(frames[0]))

    def draw(i: int) -> list:
        image.set_data(sections[i].values.T)
        axes.set_title(f"{dim} = {float(frames[i][dim]):g}")
        return [image]

    return draw


def _line_drawer(figure: Figure, frames: list[xr.DataArray], dim: str):
    axes = figure.subplots()
    along = str(frames[0].dims[0]) if frames[0].ndim else ""
    values = np.array([np.atleast_1d(frame.values) for frame in frames])
    position = np.arange(values.shape[1]) if frames[0][along].dtype.kind in "OU" else frames[0][along].values
    (line,) = axes.plot(position, values[0], marker="o" if values.shape[1] < 40 else "", color=panels.COLORS[0])
    margin = 0.05 * (np.ptp(values) or 1.0)
    axes.set_ylim(values.min() - margin, values.max() + margin)
    axes.set_xlabel(along)
    axes.set_ylabel(panels.label(frames[0]))

    def draw(i: int) -> list:
        line.set_ydata(values[i])
        axes.set_title(f"{dim} = {float(frames[i][dim]):g}")
        return [line]

    return draw


def _edges(centres: np.ndarray) -> tuple[float, float]:
    half = 0.5 * (centres[1] - centres[0]) if len(centres) > 1 else 0.5
    return float(centres[0] - half), float(centres[-1] + half)
