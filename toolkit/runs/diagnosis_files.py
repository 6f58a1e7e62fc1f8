"""The dataset and the picture of a diagnosis.

| variable                     | dimensions            | meaning                                                   |
|------------------------------|-----------------------|-----------------------------------------------------------|
| `physics_singular_value`     | sample, physics_mode  | of ∂y/∂x, sample by sample, descending                     |
| `network_singular_value`     | network_mode          | of ∂x/∂θ of the batch                                      |
| `total_singular_value`       | total_mode            | of ∂y/∂θ of the batch                                      |
| `state_gradient`             | t                     | root mean square over samples of the norm of ∂L/∂s_t       |
| `control_gradient`           | t                     | the same of ∂L/∂c_t; NaN at the last time                  |
| `saturation`                 | activation            | share of saturated units                                  |
| `cost`                       | rule                  | of an update, relative to one of dp                       |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolkit.runs import names, panels
from toolkit.training.advice import Findings
from toolkit.training.spectra import KEPT
from toolkit.training.update_cost import Cost

WORDS = {
    "network": "singular values of the networks, batch",
    "physics": "singular values of the physics, sample by sample",
    "total": "singular values of networks and physics, batch",
}
SYMBOLS = {"network": "network ∂x/∂θ", "physics": "physics ∂y/∂x", "total": "both ∂y/∂θ"}


def dataset_of(found: Findings, costs: Mapping[str, Cost], dt: float, attributes: Mapping[str, Any]) -> xr.Dataset:
    """All numbers of a diagnosis; `dt` is the length of a time step."""
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}
    for part, words in WORDS.items():
        spectrum = getattr(found.spectra, part)
        if spectrum is None:
            continue
        dims = (names.SAMPLE, f"{part}_mode") if part == "physics" else (f"{part}_mode",)
        variables[f"{part}_singular_value"] = _result(dims, spectrum.values, words)
        coordinates[dims[-1]] = _coordinate(dims[-1], np.arange(spectrum.values.shape[-1]), f"number of the {words}")
        if part == "physics":
            coordinates[names.SAMPLE] = _coordinate(
                names.SAMPLE, np.arange(len(spectrum.values)), "sample of the first batch"
            )
    if found.steps is not None:
        times = dt * np.arange(len(found.steps.state))
        coordinates[names.TIME] = _coordinate(names.TIME, times, names.LONG_NAMES[names.TIME])
        variables["state_gradient"] = _result(
            (names.TIME,), found.steps.state, "norm of the loss gradient in the state"
        )
        if found.steps.control is not None:
            padded = np.append(found.steps.control, np.nan)
            variables["control_gradient"] = _result((names.TIME,), padded, "norm of the loss gradient in the force")
    if found.saturation:
        labels = [f"{s.network}/{s.layer}" for s in found.saturation]
        coordinates["activation"] = _coordinate("activation", np.array(labels, dtype=str), "activation")
        shares = np.array([s.share for s in found.saturation])
        variables["saturation"] = _result(("activation",), shares, "share of saturated units")
    if costs:
        coordinates["rule"] = _coordinate("rule", np.array(list(costs), dtype=str), "update rule")
        ratios = np.array([cost.ratio for cost in costs.values()])
        variables["cost"] = _result(("rule",), ratios, "duration of an update relative to one of dp")
    return xr.Dataset(variables, coordinates, dict(attributes))


def _result(dims: tuple[str, ...], values: np.ndarray, long_name: str) -> tuple[Any, ...]:
    return dims, values, {"long_name": long_name, "units": "1", "coverage_content_type": names.RESULT}


def _coordinate(dim: str, values: np.ndarray, long_name: str) -> tuple[Any, ...]:
    return (dim,), values, {"long_name": long_name, "units": "1", "coverage_content_type": names.COORDINATE}


def spectrum_figure(dataset: xr.Dataset) -> Figure:
    """Singular values, and where there are such: gradients per time step, saturation."""
    drawings = {_draw_spectra: 2.7}
    if "state_gradient" in dataset:
        drawings[_draw_steps] = 2.2
    if "saturation" in dataset:
        drawings[_draw_saturation] = 0.6 + 0.16 * dataset.sizes["activation"]
    heights = list(drawings.values())
    figure = Figure(figsize=(6.8, 0.6 + sum(heights)), layout="constrained")
    rows = figure.subplots(len(drawings), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, draw in zip(rows, drawings, strict=True):
        draw(axes, dataset)
        axes.grid(which="major", linewidth=0.4, color="#cccccc")
        axes.set_axisbelow(True)
        panels.style(axes)
    panels.title(figure, dataset)
    return figure


def _label(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal, fontsize=panels.NORMAL, color=panels.INK)
    axes.set_ylabel(vertical, fontsize=panels.NORMAL, color=panels.INK)


def _draw_spectra(axes: Axes, dataset: xr.Dataset) -> None:
    """Relative to the largest, over the fraction of all directions, so that one panel holds all parts."""
    for number, (part, text) in enumerate(SYMBOLS.items()):
        if f"{part}_singular_value" not in dataset:
            continue
        values = dataset[f"{part}_singular_value"].values
        # What is below the rounding error of the largest says nothing.
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(values > 1e-16 * values[..., :1], values / values[..., :1], np.nan)
        place = (np.arange(values.shape[-1]) + 0.5) / values.shape[-1]
        color = panels.COLORS[number]
        marker = {"marker": "o", "markersize": 3.0} if values.shape[-1] <= 64 else {}
        if values.ndim == 1:
            axes.plot(place, relative, color=color, label=text, linewidth=1.2, **marker)
            continue
        middle = np.median(relative, axis=0)
        axes.plot(place, middle, color=color, label=f"{text}, median of samples", linewidth=1.2, **marker)
        axes.fill_between(place, relative.min(axis=0), relative.max(axis=0), color=color, alpha=0.2, linewidth=0)
    axes.axhline(KEPT, color=panels.INK, linewidth=0.6, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.legend(fontsize=panels.SMALL, frameon=False)
    _label(axes, "fraction of the directions", "singular value / largest")


def _draw_steps(axes: Axes, dataset: xr.Dataset) -> None:
    lines = {"state_gradient": "state, |∂L/∂s|", "control_gradient": "force, |∂L/∂c|"}
    for number, (name, text) in enumerate(lines.items()):
        if name in dataset:
            values = dataset[name]
            shown = np.where(values.values > 0, values.values, np.nan)
            axes.plot(values[names.TIME].values, shown, color=panels.COLORS[number], label=text, linewidth=1.2)
    axes.set_yscale("log")
    axes.margins(x=0.0)
    axes.legend(fontsize=panels.SMALL, frameon=False)
    _label(axes, panels.axis_label(dataset["state_gradient"], names.TIME), "gradient norm")


def _draw_saturation(axes: Axes, dataset: xr.Dataset) -> None:
    shares = dataset["saturation"]
    labels = [str(label) for label in shares["activation"].values]
    places = np.arange(len(labels))[::-1]
    bars = axes.barh(places, 100 * shares.values, color=panels.COLORS[2], height=0.7)
    # A bar of length zero would not be seen.
    axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=panels.SMALL, color=panels.INK)
    axes.set_yticks(places, labels)
    axes.set_xlim(0, 105)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    _label(axes, "saturated units [%]", "")
