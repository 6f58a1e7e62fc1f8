"""What a network in the loop does, before and after training: states and controls along t.

Sample 0 is drawn thick, the other written samples thin; dashed is before the first update, solid after the last. What
lies on a grid is shown as images of sample 0, before and after, with common colours.
"""

from __future__ import annotations

import math

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from toolkit.runs import names, panels

MAX_PANELS = 20
COLUMNS = 4
MAX_SAMPLES = 100
MAX_POINTS = 2000
"""Times of a line."""
BEFORE, AFTER = panels.COLORS[1], panels.COLORS[0]


def in_time(fields: xr.Dataset) -> list[str]:
    """Names of what is known before and after training and lies along t without space."""
    return [name for name in _both(fields) if not panels.spatial_dims(fields[name])]


def in_space(fields: xr.Dataset) -> list[str]:
    """The same with space."""
    return [name for name in _both(fields) if panels.spatial_dims(fields[name])]


def _both(fields: xr.Dataset) -> list[str]:
    known = [str(name) for name in fields.data_vars if names.TIME in fields[name].dims]
    return [name for name in known if name + names.UNTRAINED in known]


def trajectories(fields: xr.Dataset) -> Figure:
    """One panel per component of what `in_time` names."""
    pairs = [pair for name in in_time(fields) for pair in _components(fields, name)]
    shown = pairs[:MAX_PANELS]
    columns = len(shown) if len(shown) <= 3 else math.ceil(math.sqrt(len(shown)))
    columns = min(COLUMNS, columns)
    rows = math.ceil(len(shown) / columns)
    # Wide enough for the legend below.
    figure = Figure(figsize=(max(5.2, 2.6 * columns + 0.4), 1.9 * rows + 1.0), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    places = list(grid.ravel())
    for axes, (text, before, after) in zip(places, shown, strict=False):
        _draw(axes, before, BEFORE, "--")
        _draw(axes, after, AFTER, "-")
        axes.set_title(text, fontsize=panels.NORMAL, color=panels.INK)
        axes.grid(linewidth=0.3, color="#cccccc")
        axes.margins(x=0.0)
        panels.style(axes)
    for k, axes in enumerate(places):
        axes.set_visible(k < len(shown))
        if k + columns >= len(shown):
            # The lowest panel of a column may have an empty place below it.
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(panels.axis_label(fields[names.TIME], names.TIME), fontsize=panels.NORMAL, color=panels.INK)
    more = len(pairs) - len(shown)
    _legend(figure, fields.sizes.get(names.SAMPLE, 1) > 1, f"{more} more components not shown" if more else "")
    panels.title(figure, fields)
    return figure


def _components(fields: xr.Dataset, name: str) -> list[tuple[str, xr.DataArray, xr.DataArray]]:
    """(title, before, after) of each component, as real numbers."""
    after, before = (_read(fields[n]) for n in (name, name + names.UNTRAINED))
    if after.dtype.kind == "c":
        before, after = abs(before), abs(after).assign_attrs(after.attrs)
    component = panels.component_dim(after)
    words = name.replace("_", " ")
    bracket = panels.bracketed(str(fields[name].attrs.get("units", "1")))
    if component is None:
        return [(words + bracket, before, after)]
    parts = [(str(label), {component: k}) for k, label in enumerate(after[component].values)]
    return [(f"{words}: {label.replace('_', ' ')}{bracket}", before.isel(at), after.isel(at)) for label, at in parts]


def _read(array: xr.DataArray) -> xr.DataArray:
    """What is drawn of a variable, all components at once: a file is read chunk by chunk."""
    first = {names.SAMPLE: slice(0, MAX_SAMPLES)} if names.SAMPLE in array.dims else {}
    return panels.thinned(array.isel(first), MAX_POINTS).compute()


def _draw(axes: Axes, array: xr.DataArray, color: str, style: str) -> None:
    t = array[names.TIME].values
    for i in reversed(range(array.sizes.get(names.SAMPLE, 1))):
        thick = i == 0
        axes.plot(
            t,
            panels.sample(array, i).values,
            style,
            color=color,
            linewidth=1.6 if thick else 0.6,
            alpha=1.0 if thick else 0.35,
            zorder=3 if thick else 2,
        )


def _legend(figure: Figure, several: bool, note: str) -> None:
    handles = [
        Line2D([], [], color=BEFORE, linestyle="--", linewidth=1.6, label="before training"),
        Line2D([], [], color=AFTER, linewidth=1.6, label="after training"),
    ]
    if several:
        handles.append(Line2D([], [], color=AFTER, linewidth=0.6, alpha=0.6, label="thin: other samples"))
    if note:
        handles.append(Line2D([], [], linestyle="", label=note))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=panels.SMALL, frameon=False)


def before_and_after(fields: xr.Dataset) -> Figure:
    """One row per variable that `in_space` names, before on the left and after on the right, of sample 0."""
    rows = in_space(fields)
    height = sum(2.9 * panels.aspect(panels.section(panels.sample(fields[name], 0))) for name in rows)
    figure = Figure(figsize=(7.0, height + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for r, name in enumerate(rows):
        pair = [panels.section(panels.sample(fields[name + suffix], 0)).compute() for suffix in (names.UNTRAINED, "")]
        norm, cmap = panels.norm_of(pair)
        for c, array in enumerate(pair):
            panels.draw_image(grid[r, c], array, norm, cmap)
            panels.tidy(grid[r, c], first=c == 0, last=r == len(rows) - 1, image=True)
        bar = figure.colorbar(grid[r, 1].get_images()[0], ax=list(grid[r]), aspect=20, pad=0.01, fraction=0.05)
        bar.set_label(panels.label(pair[1]), fontsize=panels.NORMAL, color=panels.INK)
        bar.ax.tick_params(labelsize=panels.SMALL, width=0.6, length=2.5)
    for axes, text in zip(grid[0], ("before training", "after training"), strict=True):
        axes.set_title(text, fontsize=panels.NORMAL, color=panels.INK)
    panels.title(figure, fields)
    return figure
