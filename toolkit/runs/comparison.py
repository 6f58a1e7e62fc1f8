"""Fields of an inverse problem side by side: target, predicted control, true control, error."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolkit.core.errors import StorageError
from toolkit.runs import names, panels

MAX_SAMPLES = 4
MAX_COMPONENTS = 4


def controls_of(fields: xr.Dataset) -> list[str]:
    """Names of the predicted controls in a field file: marked as such, or with a reference beside them."""
    found = []
    for name in [str(n) for n in fields.data_vars]:
        if fields[name].attrs.get(names.ROLE) == "control" or name + names.REFERENCE in fields:
            found.append(name)
    return found


@dataclass
class _Column:
    """One column of a comparison: what its panels show, sample by sample."""

    title: str
    arrays: list[tuple[str, xr.DataArray]]
    difference: bool = False
    shares: list[xr.DataArray] = field(default_factory=list)
    """Further arrays that the colour limits cover."""

    def rows(self, count: int) -> list[list[tuple[str, xr.DataArray]]]:
        """Sections per sample, not read."""
        return [[(text, panels.section(panels.sample(array, i))) for text, array in self.arrays] for i in range(count)]


def field_comparison(fields: xr.Dataset, control: str | None = None, samples: int = MAX_SAMPLES) -> Figure:
    """Target, predicted control, true control and error, one row per sample.

    A control without space is drawn against its reference over all samples, or along `step` if it has that.
    """
    known = controls_of(fields)
    name = control or next(iter(known), None)
    if name is None or name not in fields:
        raise StorageError(f"no control {control or ''} among the fields {', '.join(map(str, fields.data_vars))}")
    predicted, reference = fields[name], fields.get(name + names.REFERENCE)
    if not panels.spatial_dims(predicted) and names.TIME not in predicted.dims:
        if names.STEP in predicted.dims:
            return _history(fields, predicted, reference)
        return _scatter(fields, predicted, reference)
    columns = _target_columns(fields, reference is None) + _control_columns(predicted, reference)
    count = min(samples, predicted.sizes.get(names.SAMPLE, 1))
    return _comparison(fields, columns, count)


def _target_columns(fields: xr.Dataset, with_result: bool) -> list[_Column]:
    """The first target y*; with the result P(x) beside it where there is no true control to compare with."""
    target = next((str(n) for n in fields.data_vars if str(n).endswith(names.TARGET)), None)
    if target is None:
        return []
    wanted, result = fields[target], fields.get(target.removesuffix(names.TARGET))
    if result is not None and panels.is_point(panels.section(panels.sample(wanted, 0))) and names.TIME in result.dims:
        # Nothing to draw of the target but points: where the way of the result should end.
        return [_Column("observation $y$", [("result $P(x)$", result), ("target $y^*$", wanted)])]
    if result is not None and names.TIME in result.dims and names.TIME not in wanted.dims:
        result = result.isel({names.TIME: -1})
    if result is None:
        return [_Column("target $y^*$", [("target", wanted)])]
    if not panels.is_image(panels.section(panels.sample(wanted, 0))):
        return [_Column("observation $y$", [("target $y^*$", wanted), ("result $P(x)$", result)])]
    columns = [_Column("target $y^*$", [("", wanted)], shares=[result] if with_result else [])]
    if with_result:
        columns.append(_Column("result $P(x)$", [("", result)], shares=[wanted]))
        columns.append(_Column("residual $P(x) - y^*$", [("", _difference(result, wanted))], difference=True))
    return columns


def _control_columns(predicted: xr.DataArray, reference: xr.DataArray | None) -> list[_Column]:
    if reference is None:
        return [_Column("predicted control $x$", [("", predicted)])]
    error = _Column("error $x - x^*$", [("", _difference(predicted, reference))], difference=True)
    if not panels.is_image(panels.section(panels.sample(predicted, 0))):
        return [_Column("control", [("true $x^*$", reference), ("predicted $x$", predicted)]), error]
    shown = _Column("predicted control $x$", [("", predicted)], shares=[reference])
    return [shown, _Column("true control $x^*$", [("", reference)], shares=[predicted]), error]


def _comparison(fields: xr.Dataset, columns: list[_Column], count: int) -> Figure:
    ratio = _height_per_width(columns, count)
    figure = Figure(figsize=(2.5 * len(columns) + 0.4, count * (2.1 * ratio + 0.35) + 1.3), layout="constrained")
    grid = figure.subplots(count, len(columns), squeeze=False)
    left: tuple = ()
    for c, column in enumerate(columns):
        rows = [[(text, array.compute()) for text, array in row] for row in column.rows(count)]
        shared = [panels.section(panels.sample(a, i)).compute() for a in column.shares for i in range(count)]
        norm, cmap = panels.norm_of([a for row in rows for _, a in row] + shared, column.difference)
        for r, row in enumerate(rows):
            image = panels.is_image(row[0][1])
            if image:
                panels.draw_image(grid[r, c], row[0][1], norm, cmap)
            else:
                panels.draw_lines(grid[r, c], row)
                if column.difference:
                    grid[r, c].axhline(0.0, linewidth=0.6, color=panels.INK)
            panels.tidy(grid[r, c], first=row[0][1].dims != left, last=r == count - 1, image=image)
        left, text = rows[0][0][1].dims, panels.label(rows[0][-1][1])
        # An image says what it shows at its colour bar.
        title = column.title if panels.is_image(rows[0][0][1]) else f"{column.title}\n{text}"
        grid[0, c].set_title(title, fontsize=panels.NORMAL, color=panels.INK)
        if panels.is_image(rows[0][0][1]):
            panels.colorbar(figure, norm, cmap, list(grid[:, c]), text)
        elif len(column.arrays) > 1 or panels.component_dim(rows[0][0][1]):
            grid[0, c].legend(fontsize=panels.SMALL, frameon=False)
    if names.SAMPLE in fields.dims:
        for r in range(count):
            _row_label(grid[r, 0], f"sample {r}")
    panels.title(figure, fields)
    return figure


def _history(fields: xr.Dataset, predicted: xr.DataArray, reference: xr.DataArray | None) -> Figure:
    """A control without space along the updates that found it."""
    count = min(MAX_SAMPLES, predicted.sizes.get(names.SAMPLE, 1))
    figure = Figure(figsize=(6.0, 0.8 + 2.2 * count), layout="constrained")
    rows = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for i, axes in enumerate(rows):
        panels.draw_lines(axes, [("", panels.section(panels.sample(predicted, i)).compute())])
        truth = [] if reference is None else np.ravel(panels.sample(reference, i).values)
        for k, value in enumerate(truth):
            color = panels.COLORS[k % len(panels.COLORS)]
            axes.axhline(value, color=color, linewidth=0.9, linestyle="--", label="true $x^*$" if k == 0 else None)
        axes.set_ylabel(panels.label(predicted), fontsize=panels.NORMAL, color=panels.INK)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=panels.SMALL, frameon=False)
    rows[-1].set_xlabel("updates", fontsize=panels.NORMAL, color=panels.INK)
    rows[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    panels.title(figure, fields)
    return figure


def _scatter(fields: xr.Dataset, predicted: xr.DataArray, reference: xr.DataArray | None) -> Figure:
    """A control of a few numbers: predicted against true over all samples, one panel per component."""
    component = panels.component_dim(predicted)
    count = min(MAX_COMPONENTS, predicted.sizes[component] if component else 1)
    figure = Figure(figsize=(2.8 * count + 0.4, 3.1), layout="constrained")
    for i, axes in enumerate(figure.subplots(1, count, squeeze=False)[0]):
        part = predicted.isel({component: i}) if component else predicted
        values = np.ravel(part.values)
        truth = np.arange(values.size) if reference is None else None
        if reference is not None:
            truth = np.ravel((reference.isel({component: i}) if component else reference).values)
            axes.axline((float(truth.flat[0]), float(truth.flat[0])), slope=1, color=panels.INK, linewidth=0.6)
        axes.plot(truth, values, "o", color=panels.COLORS[0], markersize=3.5, alpha=0.8, markeredgewidth=0)
        axes.set_xlabel("sample" if reference is None else "true $x^*$", fontsize=panels.NORMAL, color=panels.INK)
        text = f" {part[component].item()}" if component and component in part.coords else ""
        axes.set_title(panels.label(predicted) + text, fontsize=panels.NORMAL, color=panels.INK)
        axes.grid(linewidth=0.3, color="#cccccc")
        panels.style(axes)
        if i == 0:
            axes.set_ylabel("predicted $x$", fontsize=panels.NORMAL, color=panels.INK)
    panels.title(figure, fields)
    return figure


def _difference(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    """Of what is drawn; all of it may be too much to read."""
    last = a.isel({names.STEP: -1}) if names.STEP in a.dims and names.STEP not in b.dims else a
    first = {names.SAMPLE: slice(0, MAX_SAMPLES)} if names.SAMPLE in last.dims else {}
    last, b = panels.cut(last.isel(first)), panels.cut(b.isel(first))
    result = last.copy(data=last.values - b.transpose(*last.dims).values)
    return result.assign_attrs(long_name=f"error of {a.attrs.get('long_name', a.name)}")


def _height_per_width(columns: list[_Column], count: int) -> float:
    return max(panels.aspect(array) for column in columns for _, array in column.rows(min(1, count))[0])


def _row_label(axes: Axes, text: str) -> None:
    below = axes.get_ylabel()
    axes.set_ylabel(f"{text}\n{below}" if below else text, fontsize=panels.NORMAL, color=panels.INK)
