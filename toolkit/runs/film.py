"""An animation of a run along time or along the steps of an optimisation, as a GIF.

What the PDE plugin draws of the state, before and after training where the run has both; without such a drawing the
first field that changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toolkit.core.errors import PhinverseError, ScenarioError, StorageError
from toolkit.physics.drawing import Drawing
from toolkit.runs import atomic, names, panels
from toolkit.runs.events import SILENT
from toolkit.runs.open import open_run
from toolkit.runs.plots import drawing_chunks
from toolkit.runs.scenes import Scene, decimals, scene_drawer
from toolkit.scenario.load import load_scenario

MAX_FRAMES = 100
FRAMES_PER_SECOND = 12
DPI = 100
POINTS = 500
"""Cells along one side of an image, which has fewer pixels."""
HOLD = 10
"""Frames for which the last drawing stands still; a GIF begins again at once."""

Draw = Callable[[Mapping[str, np.ndarray]], Drawing]


def write_film(run: Path, sample: int = 0, say: Callable[[str], None] = SILENT.message) -> Path:
    """Write `plots/film.gif` of one sample: the plugin's drawings, or the first field that changes along `t` or
    `step`; its path. `say` is told where there is a drawing that cannot be made."""
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    # FuncAnimation draws on a canvas; Agg needs no display.
    FigureCanvasAgg(figure)
    with open_run(run, drawing_chunks(run)) as stored:
        array, dim = _moving(stored.fields)
        samples = stored.fields.sizes.get(names.SAMPLE, 1)
        if not 0 <= sample < samples:
            raise ScenarioError(f"--sample {sample}: the run has written {samples}, counted from 0")
        count = array.sizes[dim]
        chosen = np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).astype(int))
        shown = stored.fields.isel(
            {dim: chosen} | ({names.SAMPLE: sample} if names.SAMPLE in stored.fields.dims else {})
        )
        scenes = _scenes(stored.directory.scenario, shown, dim, say)
        one = panels.sample(array, sample)
        frames = [panels.section(one.isel({dim: int(i)}), POINTS).compute() for i in chosen] if not scenes else []
        titles = _titles(shown, dim)
    order = [*range(len(chosen))]
    if scenes:
        draw = scene_drawer(figure, scenes, titles)
        order += HOLD * order[-1:]
    else:
        draw = _image_drawer(figure, frames, dim) if frames[0].ndim >= 2 else _line_drawer(figure, frames, dim)
        draw(0)
        # Laid out once, which takes longer than to draw; nothing changes its size from frame to frame.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    animation = FuncAnimation(figure, draw, frames=order, interval=1000 / FRAMES_PER_SECOND, blit=False)
    path = run / "plots" / "film.gif"
    path.parent.mkdir(exist_ok=True)
    with atomic.replacing(path) as temporary:
        animation.save(temporary, writer=PillowWriter(fps=FRAMES_PER_SECOND), dpi=DPI)
    return path


def _moving(fields: xr.Dataset) -> tuple[xr.DataArray, str]:
    for dim in (names.TIME, names.STEP):
        moving = [fields[name] for name in fields.data_vars if dim in fields[name].dims and fields.sizes[dim] > 1]
        if moving:
            # States before controls, which have no value at the last frame; fields in space before numbers.
            return min(moving, key=lambda a: (a.attrs.get(names.ROLE) != "state", a.ndim < 3)), dim
    raise StorageError(f"nothing to animate: no field along {names.TIME} or {names.STEP} with more than one frame")


def _scenes(scenario: Path, fields: xr.Dataset, dim: str, say: Callable[[str], None]) -> list[Scene]:
    """What the plugin draws, one scene per state of the network; none where it does not draw or cannot."""
    try:
        chosen = load_scenario(scenario).sections.pde
        drawing, options = chosen.plugin.drawing, chosen.options
        if drawing is None:
            return []

        def draw(state: Mapping[str, np.ndarray]) -> Drawing:
            return drawing(options, state)

        states = [
            str(n) for n in fields.data_vars if fields[n].attrs.get(names.ROLE) == "state" and dim in fields[n].dims
        ]
        if not states:
            say(f"the film shows a field, not the drawing of the plugin: no state along {dim} was written")
            return []
        after = _drawn({n: fields[n] for n in states}, dim, draw)
        before = {n: fields[n + names.UNTRAINED] for n in states if n + names.UNTRAINED in fields}
        if not before:
            return [Scene("", after)]
        return [Scene("before training", _drawn(before, dim, draw)), Scene("after training", after)]
    except PhinverseError as error:
        say(f"the film shows a field, not the drawing of the plugin: {error}")
        return []


def _drawn(fields: Mapping[str, xr.DataArray], dim: str, draw: Draw) -> tuple[Drawing, ...]:
    """A drawing per frame of these fields."""
    count = min((array.sizes[dim] for array in fields.values()), default=0)
    return tuple(draw(_state(fields, {dim: i})) for i in range(count))


def _state(fields: Mapping[str, xr.DataArray], at: Mapping[str, int]) -> _State:
    """One frame of these fields; frames of a large grid may not fit into memory together."""
    values = _State({name: _parts(array.isel(at).values) for name, array in fields.items()})
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise StorageError(f"{fields[name].name} holds values that are not finite")
    return values


def _parts(values: np.ndarray) -> np.ndarray:
    """A complex number as its parts, as plugins see it."""
    return np.stack([np.real(values), np.imag(values)], axis=-1) if np.iscomplexobj(values) else values


class _State(dict[str, Any]):
    """A state by field; says which field was not written."""

    def __missing__(self, name: str) -> Any:
        raise StorageError(f"{name} is not in the field file; add it to output.fields and run again")


def _titles(fields: xr.Dataset, dim: str) -> list[str]:
    """Above each frame: the run, the sample and the time."""
    values = fields[dim].values
    digits = decimals(values)
    about = [str(fields.attrs.get("title", ""))]
    if names.SAMPLE in fields.coords:
        about.append(f"sample {int(fields[names.SAMPLE])}")
    symbol = f"${dim}$" if len(dim) == 1 else dim
    return [" · ".join([*filter(None, about), f"{symbol} = {float(value):.{digits}f}"]) for value in values]


def _image_drawer(figure: Figure, frames: list[xr.DataArray], dim: str):
    norm, cmap = panels.norm_of(frames)
    axes = figure.subplots()
    first = frames[0]
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
        image.set_data(frames[i].values.T)
        axes.set_title(f"{dim} = {float(frames[i][dim]):g}")
        return [image]

    return draw


def _line_drawer(figure: Figure, frames: list[xr.DataArray], dim: str):
    axes = figure.subplots()
    along = str(frames[0].dims[0]) if frames[0].ndim else ""
    values = np.array([np.atleast_1d(frame.values) for frame in frames])
    listed = not along or frames[0][along].dtype.kind in "OU"
    position = np.arange(values.shape[1]) if listed else frames[0][along].values
    (line,) = axes.plot(position, values[0], marker="o" if values.shape[1] < 40 else "", color=panels.COLORS[0])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.05 * ((high - low) or 1.0)
    axes.set_ylim(low - margin, high + margin)
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
