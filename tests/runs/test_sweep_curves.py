"""Curves of all members of a sweep in one picture."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread
from whole_runs import DIRECT, cli, write_scenario

from toolkit.runs import panels
from toolkit.runs.sweep_curves import Kinds, curves_figure, kinds_of

ABOUT = {"long_name": "validation loss, mean over samples", "units": "1"}


def swept(**axes):
    """Losses that fall from step to step; those of member (i, k, …) are 1 + i + 10 k + … at the start."""
    shape = tuple(len(labels) for labels in axes.values())
    start = 1 + sum(10.0**n * places for n, places in enumerate(np.indices(shape)))
    loss = np.stack([start, start / 10, start / 1000], axis=-1)
    return xr.Dataset({"validation_loss": ((*axes, "step"), loss, ABOUT)}, {**axes, "step": [0, 5, 10]})


def figure_of(dataset):
    kinds = kinds_of(dataset)
    assert kinds is not None
    return curves_figure(dataset, "validation_loss", kinds)


def test_one_axis_has_colours_and_the_other_line_styles():
    ds = swept(clip=["none", "value", "norm"], flow=["combined", "physics", "full", "stopped"])
    ds.flow.attrs["scenario_key"] = "update.flow"
    assert kinds_of(ds) == Kinds("flow", "clip", ())
    figure = figure_of(ds)
    (axes,) = figure.axes
    styles = {"none": "-", "value": "--", "norm": ":"}
    assert len(axes.lines) == 12
    for line, (flow, clip) in zip(axes.lines, [(f, c) for f in ds.flow.values for c in ds["clip"].values], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), ds.validation_loss.sel(flow=flow, clip=clip))
        assert line.get_color() == panels.COLORS[list(ds.flow.values).index(flow)]
        assert line.get_linestyle() == styles[clip]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "validation loss"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("update.flow", "combined", "physics", "full", "stopped"),
        *("clip", "none", "value", "norm"),
    ]
    figure.draw_without_rendering()
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1


def test_seeds_are_shown_by_median_and_range():
    ds = swept(flow=["a", "b"], seed=[0, 1, 2])
    assert kinds_of(ds) == Kinds("flow", None, ("seed",))
    # One seed of b has stopped early.
    ds.validation_loss.loc[{"flow": "b", "seed": 2, "step": 10}] = np.nan
    (axes,) = figure_of(ds).axes
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), [11, 1.1, 0.011])
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_ydata()), [12, 1.2, 0.007])
    band = np.asarray(axes.collections[1].get_paths()[0].vertices)[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [0.002, 22])


def test_a_member_that_failed_has_no_curve_and_gaps_are_closed():
    ds = swept(flow=["a", "b", "c"])
    ds.validation_loss.loc[{"flow": "b"}] = np.nan
    ds.validation_loss.loc[{"flow": "c", "step": 5}] = np.nan
    (axes,) = figure_of(ds).axes
    assert np.size(axes.lines[1].get_xdata()) == 0
    np.testing.assert_array_equal(axes.lines[2].get_xdata(), [0, 10])


def test_a_number_along_an_axis_is_a_label():
    figure = figure_of(swept(xi=[1.0, 0.25], only=["one"]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["xi", "1", "0.25"]
    assert figure_of(swept(only=["one"])).legends == []


@pytest.mark.parametrize(
    "axes",
    [
        {"xi": range(8)},
        {"rule": ["a", "b", "c", "d", "e"], "xi": range(5)},
        {"a": ["1", "2"], "b": ["1", "2"], "c": ["1", "2"]},
    ],
    ids=["eight colours", "five styles", "three axes"],
)
def test_more_curves_than_can_be_told_apart_are_not_drawn(axes):
    assert kinds_of(swept(**{name: list(labels) for name, labels in axes.items()})) is None


def test_losses_that_are_not_positive_are_on_a_linear_axis():
    ds = swept(flow=["a", "b"])
    (axes,) = figure_of(ds.assign(validation_loss=(ds.validation_loss - 0.001).assign_attrs(ABOUT))).axes
    assert axes.get_yscale() == "linear"


def test_a_sweep_is_drawn_at_its_end_and_again_by_plot(tmp_path):
    axes = ("output: {plots: false}", "sweep: {update.step_size: [0.5, 1.0]}")
    assert cli("run", write_scenario(tmp_path, DIRECT, axes), "--out", tmp_path, "--name", "it").exit_code == 0
    picture = tmp_path / "direct" / "it" / "plots" / "sweep_curves.png"
    assert imread(picture).std() > 0.01
    picture.unlink()
    assert str(picture) in cli("plot", tmp_path / "direct" / "it").stdout.splitlines()
    assert picture.is_file()
