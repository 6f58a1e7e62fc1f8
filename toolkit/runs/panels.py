"""Drawing one array into one matplotlib panel: lines for one dimension, an image for two.

`section` reduces any array of a field file to what a panel can show: the last update, the last time where
space fills the panel already, the middle plane of a volume, the magnitude of a vector, the modulus of a
complex number, every n-th value where there are more than pixels. Files may be larger than the memory: what is
not shown is not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from toolkit.runs import names

DPI = 150
INK = "#222222"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Palette of Okabe and Ito, told apart by all common kinds of colour vision."""
SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"
DIFFERENCE = "PuOr_r"

SMALL, NORMAL, LARGE = 7.5, 8.5, 10.0
IMAGE_POINTS = 1000
"""Cells or times along one side of an image, of which a panel has fewer pixels."""
LINE_POINTS = 10_000
"""Points of a line."""
ONE_SIGNED = 0.15
"""Up to this ratio of the smaller to the larger extreme, values count as being of one sign but for noise."""

_EXPONENT = re.compile(r"(?<=[a-zA-Z])\^?(-?\d+)")


def spatial_dims(array: xr.DataArray) -> list[str]:
    """The axes of space that an array has, in order."""
    return [axis for axis in names.SPACE if axis in array.dims]


def component_dim(array: xr.DataArray) -> str | None:
    """The dimension that lists components, if there is one."""
    return next((str(dim) for dim in array.dims if names.is_component(str(dim))), None)


def section(array: xr.DataArray, points: int | None = None) -> xr.DataArray:
    """What a panel shows of an array without `sample`: at most two dimensions, not more than `points` along each.

    Nothing is read: `compute()` reads what is shown and no more.
    """
    result = cut(array, points)
    if result.dtype.kind == "c":
        result = _same_attributes(abs(result), array, "modulus of ")
    component = component_dim(result)
    if component and spatial_dims(result):
        single = result.sizes[component] == 1
        reduced = result.isel({component: 0}) if single else (result**2).sum(component) ** 0.5
        result = _same_attributes(reduced, result, "" if single else "magnitude of ")
    return result


def cut(array: xr.DataArray, points: int | None = None) -> xr.DataArray:
    """The part of an array that a section is made of: one update, one time, one plane, every so many points."""
    space = spatial_dims(array)
    at = {}
    if names.STEP in array.dims and space:
        at[names.STEP] = -1
    if names.TIME in array.dims and len(space) > 1:
        at[names.TIME] = -1
    if len(space) > 2:
        at[space[2]] = array.sizes[space[2]] // 2
    return thinned(array.isel(at), points)


def thinned(array: xr.DataArray, points: int | None = None) -> xr.DataArray:
    """Every n-th value along the axes that have more than `points`, by itself IMAGE_POINTS or LINE_POINTS."""
    axes = [dim for dim in array.dims if dim not in (names.SAMPLE, component_dim(array))]
    limit = points or (IMAGE_POINTS if len(axes) > 1 else LINE_POINTS)
    return array.isel({dim: slice(None, None, math.ceil(array.sizes[dim] / limit)) for dim in axes if array.sizes[dim]})


def _same_attributes(array: xr.DataArray, source: xr.DataArray, prefix: str) -> xr.DataArray:
    long_name = prefix + source.attrs.get("long_name", str(source.name))
    return array.assign_attrs({**source.attrs, "long_name": long_name}).rename(source.name)


def label(array: xr.DataArray) -> str:
    """Long name with units in brackets, `1` left out."""
    text = str(array.attrs.get("long_name", array.name))
    return text + bracketed(str(array.attrs.get("units", "1")))


def units(array: xr.DataArray) -> str:
    """Units of an array as text, empty for `1`."""
    text = str(array.attrs.get("units", "1"))
    return "" if text == "1" else text


def bracketed(units: str) -> str:
    """Units behind a name, with exponents raised (` [m s$^{-1}$]`); nothing for `1`."""
    raised = _EXPONENT.sub(r"$^{\1}$", units)
    return "" if units == "1" else f" [{raised}]"


def axis_label(array: xr.DataArray, dim: str) -> str:
    """Short name of a dimension with its units: `$x$ [m]`, `step`."""
    units = str(array[dim].attrs.get("units", "1")) if dim in array.coords else "1"
    return (f"${dim}$" if len(dim) == 1 else dim) + bracketed(units)


def is_image(array: xr.DataArray) -> bool:
    """Whether a section needs an image: two dimensions, none of which lists components."""
    return array.ndim == 2 and component_dim(array) is None


def is_point(array: xr.DataArray) -> bool:
    """Whether a section has neither space nor time: one number, or one per component."""
    return not set(array.dims) - {component_dim(array)}


def style(axes: Axes) -> None:
    """The common look of a panel: thin frame, small ticks, dark grey ink."""
    axes.tick_params(which="both", labelsize=SMALL, width=0.6, length=2.5, color=INK, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_linewidth(0.6)
        spine.set_color(INK)
        spine.set_visible(axes.get_images() != [] or side in ("left", "bottom"))


def draw_lines(axes: Axes, arrays: Sequence[tuple[str, xr.DataArray]]) -> None:
    """Draw sections of one dimension (or one and components) over each other, later ones dashed; points of a section
    without any stand where the lines before it end."""
    styles = ("-", "--", ":", "-.")
    for number, (name, array) in enumerate(arrays):
        component = component_dim(array)
        if is_point(array):
            _draw_points(axes, name, array)
            continue
        dim = next(str(d) for d in array.dims if d != component)
        position = _positions(array, dim)
        parts = [(name, array)]
        if component:
            parts = [
                (f"{name} {_component_name(array, component, i)}".strip(), array.isel({component: i}))
                for i in range(array.sizes[component])
            ]
        for i, (text, part) in enumerate(parts):
            color = COLORS[(i if component else number) % len(COLORS)]
            axes.plot(position, part.values, styles[number % 4], color=color, label=text, linewidth=1.2)
        axes.set_xlabel(axis_label(array, dim), fontsize=NORMAL, color=INK)
        axes.margins(x=0.0)
    axes.grid(linewidth=0.3, color="#cccccc")
    axes.set_axisbelow(True)
    style(axes)


def _draw_points(axes: Axes, name: str, array: xr.DataArray) -> None:
    end = float(np.asarray(axes.lines[-1].get_xdata())[-1]) if axes.lines else 0.0
    for i, value in enumerate(np.ravel(array.values)):
        text = name if i == 0 else None
        axes.plot(end, value, "o", color=COLORS[i % len(COLORS)], markersize=4, clip_on=False, label=text)


def draw_image(axes: Axes, array: xr.DataArray, norm: Normalize, cmap: str) -> None:
    """Draw a section of two dimensions; space has the right proportions, time runs to the right."""
    dims = [str(d) for d in array.dims]
    horizontal, vertical = (names.TIME, next(d for d in dims if d != names.TIME)) if names.TIME in dims else dims
    values = array.transpose(vertical, horizontal).values
    extent = (*_limits(array, horizontal), *_limits(array, vertical))
    aspect = "auto" if names.TIME in dims else "equal"
    axes.imshow(values, origin="lower", extent=extent, aspect=aspect, norm=norm, cmap=cmap, interpolation="nearest")
    axes.set_xlabel(axis_label(array, horizontal), fontsize=NORMAL, color=INK)
    axes.set_ylabel(axis_label(array, vertical), fontsize=NORMAL, color=INK)
    # The last label of one panel would touch the first of the next.
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], prune="upper"))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    style(axes)


def norm_of(arrays: Sequence[xr.DataArray], difference: bool = False) -> tuple[Normalize, str]:
    """Common colour limits of arrays and a colour map: diverging around zero where both signs occur."""
    values = np.concatenate([np.ravel(array.values) for array in arrays])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if difference or (low < 0 < high and min(-low, high) > ONE_SIGNED * max(-low, high)):
        reach = max(-low, high) or 1.0
        return Normalize(-reach, reach), DIFFERENCE if difference else DIVERGING
    if low == high:
        high = low + (abs(low) or 1.0)
    return Normalize(low, high), SEQUENTIAL


def colorbar(figure: Figure, norm: Normalize, cmap: str, axes: Sequence[Axes], text: str) -> None:
    """One horizontal colour bar below a block of panels."""
    bar = figure.colorbar(
        ScalarMappable(norm, cmap),
        ax=list(axes),
        location="bottom",
        aspect=30,
        shrink=0.9,
        pad=0.02,
        fraction=0.06,
    )
    bar.set_label(text, fontsize=NORMAL, color=INK)
    bar.locator = MaxNLocator(4)
    # A common power of ten would be printed over the label.
    bar.formatter = FuncFormatter(lambda value, position: f"{value:.4g}".replace("-", "\N{MINUS SIGN}"))
    bar.update_ticks()
    bar.ax.tick_params(labelsize=SMALL, width=0.6, length=2.5, color=INK, labelcolor=INK)
    outline: Any = bar.outline
    outline.set_linewidth(0.6)


def _positions(array: xr.DataArray, dim: str) -> np.ndarray:
    return array[dim].values if dim in array.coords else np.arange(array.sizes[dim])


def _component_name(array: xr.DataArray, dim: str, index: int) -> str:
    return str(array[dim].values[index]) if dim in array.coords else str(index)


def _limits(array: xr.DataArray, dim: str) -> tuple[float, float]:
    """Outer ends of the cells along a dimension; its coordinate holds their centres."""
    centres = np.asarray(_positions(array, dim), dtype=float)
    if len(centres) < 2:
        return float(centres[0]) - 0.5, float(centres[0]) + 0.5
    half = (centres[-1] - centres[0]) / (len(centres) - 1) / 2
    return (float(centres[0] - half), float(centres[-1] + half)) if math.isfinite(half) else (0.0, 1.0)


def sample(array: xr.DataArray, index: int) -> xr.DataArray:
    """One sample, or the whole array where there are none."""
    return array.isel({names.SAMPLE: index}) if names.SAMPLE in array.dims else array


def aspect(array: xr.DataArray) -> float:
    """Height of an image for width 1, kept within what fits a page."""
    space = spatial_dims(array)
    if names.TIME in array.dims or len(space) < 2:
        return 0.75
    spans = [float(np.ptp(array[axis].values)) or 1.0 for axis in space[:2]]
    return min(2.5, max(0.2, spans[1] / spans[0]))


def tidy(axes: Axes, first: bool, last: bool, image: bool) -> None:
    """Axis labels only at the rim of a block of panels."""
    if not last:
        axes.set_xlabel("")
        axes.tick_params(labelbottom=False)
    if image and not first:
        axes.set_ylabel("")
        axes.tick_params(labelleft=False)


def title(figure: Figure, dataset: xr.Dataset) -> None:
    """Put the title of a dataset above a figure."""
    text = str(dataset.attrs.get("title", ""))
    if text:
        figure.suptitle(text, fontsize=LARGE, color=INK)
