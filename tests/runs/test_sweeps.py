"""Metrics of a sweep in one Dataset: axes, labels, what is missing, CF; and the picture of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread
from whole_runs import DIRECT, cli, write_scenario

import toolkit
from toolkit.core.errors import ScenarioError, StorageError
from toolkit.runs import atomic, datasets, record
from toolkit.runs.metrics import to_dataset
from toolkit.runs.provenance import collect
from toolkit.runs.sweep_axes import axes_of
from toolkit.runs.sweep_plot import final_values, judging, layout_of, sweep_figure
from toolkit.runs.sweeps import open_sweep, write_sweep

ATTRIBUTES = datasets.global_attributes("made", "", "name: made\n", collect(("test",)), (), compile_seconds=2.0)


def member(folder, steps, state="done", **metrics):
    """A finished run with these metrics."""
    folder.mkdir()
    rows = [{"step": s, **{name: values[i] for name, values in metrics.items()}} for i, s in enumerate(steps)]
    datasets.write_dataset(folder / "metrics.nc", to_dataset(rows, ATTRIBUTES))
    record.write(folder / "run.json", record.RunRecord(state, reason=None if state == "done" else "too hot"))


def made(folder, cells, text="name: made\ndescription: Made up.\npde: {type: sine, xi: 1}\n"):
    """A sweep's directory with a member per cell, whose loss is its number."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = {f"cell{i}": labels for i, labels in enumerate(cells)}
    atomic.write_json(folder / "sweep.json", {"scenario": "made", "cells": listed})
    atomic.write_text(folder / "scenario.yaml", text)
    for i, name in enumerate(listed):
        member(folder / name, [0, 10], validation_loss=[float(i), i + 0.5])
    return folder


def grid(*axes):
    """The labels of all cells of these axes (name, values), the last one fastest."""
    cells = [{}]
    for name, values in axes:
        cells = [{**cell, name: value} for cell in cells for value in values]
    return cells


def compliant(*paths):
    checker = Path(sys.executable).with_name("compliance-checker")
    done = subprocess.run([checker, "--test=cf:1.11", *paths], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.count("All tests passed!") == len(paths)


# --- the Dataset ---------------------------------------------------------------------------------------------------


def test_a_sweep_is_one_dataset_with_its_axes_as_labelled_dimensions(tmp_path):
    rules = "sweep:\n  run.seed: [1, 0]\n  rule: {sip: {}, dp: {update.type: dp}}\noutput:"
    path = write_scenario(tmp_path, DIRECT, ("output:", rules))
    assert cli("run", path, "--out", tmp_path, "--name", "it").exit_code == 0
    sweep = tmp_path / "direct" / "it"
    with toolkit.open_sweep(sweep) as ds:
        assert dict(ds.sizes) == {"seed": 2, "rule": 2, "step": 5}
        assert list(ds.seed.values) == [0, 1]
        for cell, labels in json.loads((sweep / "sweep.json").read_text())["cells"].items():
            with toolkit.open_run(sweep / cell) as run:
                found = ds.sel(rule=labels["rule"], seed=labels["run.seed"])
                for name in run.metrics.data_vars:
                    np.testing.assert_array_equal(found[name], run.metrics[name])
                assert float(found.compile_seconds) == run.metrics.compile_seconds
        assert ds.title == "direct"
        assert ds.scenario == (sweep / "scenario.yaml").read_text()
        assert ds.missing_members == "{}"
    with toolkit.open_sweep(sweep, "fields") as ds, toolkit.open_run(sweep / cell) as run:
        for name in run.fields.data_vars:
            np.testing.assert_array_equal(ds[name].sel(rule=labels["rule"], seed=labels["run.seed"]), run.fields[name])
    assert compliant(sweep / "metrics.nc", sweep / "fields.nc")
    # Without our reader, labels are found under the name CF allows.
    with xr.open_dataset(sweep / "metrics.nc") as plain:
        assert list(plain.rule_name.values) == ["sip", "dp"]
    assert not (sweep / "plots").exists()  # plots: false


def test_members_that_are_not_done_are_nan_and_named_with_their_reason(tmp_path):
    rates = ("output:", "sweep: {update.optimizer.learning_rate: [1e300, 1.0]}\noutput:")
    assert cli("run", write_scenario(tmp_path, DIRECT, rates), "--out", tmp_path, "--name", "it").exit_code == 3
    sweep = tmp_path / "direct" / "it"
    with toolkit.open_sweep(sweep) as ds:
        assert list(ds.learning_rate.values) == [1.0, 1e300]
        assert ds.validation_loss.sel(learning_rate=1e300).isnull().all()
        assert ds.validation_loss.sel(learning_rate=1.0).notnull().any()
        (reason,) = json.loads(ds.missing_members).values()
    assert reason.startswith("failed: ")


def test_steps_and_metrics_that_only_some_members_have_are_nan_elsewhere(tmp_path):
    sweep = made(tmp_path / "s", [{"a.x": 1}])
    atomic.write_json(sweep / "sweep.json", {"cells": {"cell0": {"a.x": 1}, "other": {"a.x": 2}}})
    member(sweep / "other", [5, 10], validation_loss=[7.0, 8.0], drift=[1.0, 2.0])
    ds = open_sweep(sweep)
    np.testing.assert_array_equal(ds.step, [0, 5, 10])
    np.testing.assert_array_equal(ds.validation_loss, [[0.0, np.nan, 0.5], [np.nan, 7.0, 8.0]])
    np.testing.assert_array_equal(ds.drift.sel(x=1), [np.nan] * 3)


def test_a_sweep_that_goes_on_is_read_from_its_members(tmp_path):
    sweep = made(tmp_path / "s", grid(("a.x", [1, 2])))
    member_record = sweep / "cell1" / "run.json"
    member_record.unlink()
    write_sweep(sweep)
    with open_sweep(sweep) as ds:
        assert json.loads(ds.missing_members) == {"cell1": "has not begun"}
    record.write(member_record, record.RunRecord("done"))
    later = (sweep / "metrics.nc").stat().st_mtime_ns + 1
    os.utime(member_record, ns=(later, later))
    ds = open_sweep(sweep)
    assert ds.missing_members == "{}"
    assert float(ds.validation_loss.sel(x=2, step=0)) == 1.0


def test_what_is_no_sweep_or_has_nothing_is_told(tmp_path):
    sweep = made(tmp_path / "s", [{"a.x": 1}])
    with pytest.raises(ScenarioError, match=r"not the directory of a sweep: .* open a run with open_run"):
        open_sweep(sweep / "cell0")
    (sweep / "cell0" / "metrics.nc").unlink()
    assert write_sweep(sweep) is None
    with pytest.raises(StorageError, match="no member of this sweep is done"):
        open_sweep(sweep)
    (sweep / "sweep.json").write_text('{"cells": 3}')
    with pytest.raises(StorageError, match="does not list the members"):
        open_sweep(sweep)


@pytest.mark.parametrize(
    ("key", "labels", "name", "expected"),
    [
        ("pde.xi", [3, 1, 2], "xi", (1, 2, 3)),
        ("time.dt", ["1/4", 0.5, 1], "dt", (0.25, 0.5, 1.0)),
        ("time.dt", ["1/pde.xi", 2], "dt", ("1/pde.xi", "2")),
        ("train.infinite", [True, False], "infinite", ("true", "false")),
        ("rule", ["2", "1"], "rule", ("2", "1")),
        ("learning rate", ["low", "high"], "learning_rate", ("low", "high")),
        ("step", ["a", "b"], "axis_step", ("a", "b")),
        ("x.drift", [1], "axis_drift", (1,)),
        ("grid.extent", ['{"x": 1}', '{"x": 2}'], "extent", ('{"x": 1}', '{"x": 2}')),
    ],
)
def test_axes_have_short_names_and_numbers_where_all_labels_are(key, labels, name, expected):
    (axis,) = axes_of([{key: label} for label in labels], taken=["drift"])
    assert (axis.name, axis.labels) == (name, expected)
    assert [type(label) for label in axis.labels] == [type(label) for label in expected]


def test_axes_that_end_in_the_same_word_keep_their_whole_key():
    axes = axes_of(grid(("run.seed", [0, 1]), ("data.seed", [1, 2])))
    assert [axis.name for axis in axes] == ["run_seed", "data_seed"]


def test_units_of_an_axis_are_those_of_its_option_where_cf_knows_them(tmp_path):
    ds = open_sweep(made(tmp_path / "s", grid(("pde.phi", [0, 45]), ("pde.xi", [1]), ("rule", ["a"]))))
    assert (ds.phi.units, ds.xi.units, ds.rule.units) == ("degrees", "1", "1")
    assert ds.phi.scenario_key == "pde.phi"


# --- the picture ---------------------------------------------------------------------------------------------------


def swept(**axes):
    """A combined Dataset: the final loss is the product of positions, counted from 1, along the axes."""
    shape = tuple(len(labels) for labels in axes.values())
    value = np.prod(np.meshgrid(*[np.arange(1.0, n + 1) for n in shape], indexing="ij"), axis=0)
    loss = np.stack([np.full(shape, 100.0), value, value], axis=-1)
    about = {"long_name": "validation loss, mean over samples", "units": "1"}
    return xr.Dataset({"validation_loss": ((*axes, "step"), loss, about)}, {**axes, "step": [0, 95, 100]})


def test_the_last_tenth_of_the_steps_of_each_member_is_averaged():
    ds = swept(xi=[1, 2])
    # The second member has stopped at step 0.
    ds.validation_loss[:] = np.array([[9.0, 1.0, 3.0], [5.0, np.nan, np.nan]])
    np.testing.assert_array_equal(final_values(ds.validation_loss), [2.0, 5.0])


def test_a_numeric_axis_runs_to_the_right_and_labels_have_lines():
    ds = swept(rule=["sip", "adam"], xi=[1, 4, 64], seed=[0, 1, 2])
    ds.validation_loss.loc[{"seed": 2}] *= 10
    layout = layout_of(ds)
    assert (layout.horizontal, layout.lines, layout.spread) == ("xi", ("rule",), ("seed",))
    (axes,) = (figure := sweep_figure(ds)).axes
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), [1, 4, 64])
    # Median over the seeds: position 2 along `seed`, 2 along `rule`, and 1 to 3 along xi.
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [4.0, 8.0, 12.0])
    band = np.asarray(axes.collections[1].get_paths()[0].vertices)[:, 1]
    assert (band.min(), band.max()) == (2.0, 180.0)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sip", "adam"]


def test_axes_are_logarithmic_only_beyond_a_decade():
    (axes,) = sweep_figure(swept(phi=[0, 1, 45], rule=["a", "b"])).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")


def test_without_a_numeric_axis_labels_have_dots():
    ds = swept(rule=["sip", "adam", "sgd"], seed=[0, 1])
    (axes,) = (figure := sweep_figure(ds)).axes
    figure.canvas.draw()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["sip", "adam", "sgd"]
    assert axes.lines[0].get_linestyle() == "None"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.5, 3.0, 4.5])


def test_seeds_alone_are_an_axis_like_any_other():
    assert layout_of(swept(seed=[0, 1, 2])).horizontal == "seed"


def test_more_lines_than_can_be_told_apart_are_counted_not_drawn():
    figure = sweep_figure(swept(xi=[1, 2], name=[f"n{i}" for i in range(30)]))
    assert len(figure.axes[0].lines) == 21
    assert "9 more not shown" in figure.legends[0].get_title().get_text()


def test_runs_are_judged_by_what_was_measured_on_validation_samples():
    ds = swept(xi=[1, 2])
    for name in ("x_distance", "train_x_distance", "control_error", "wall_seconds", "train_loss"):
        ds[name] = ds.validation_loss
    ds["control_error"] = ds.control_error * np.nan
    assert judging(ds) == ["x_distance", "validation_loss"]
    assert judging(ds[["wall_seconds"]]) == []
    assert judging(ds[["train_loss", "wall_seconds"]]) == ["train_loss"]


def test_a_sweep_is_drawn_at_its_end_and_again_by_plot(tmp_path):
    axes = ("output: {plots: false}", "sweep: {run.seed: [0, 1]}")
    assert cli("run", write_scenario(tmp_path, DIRECT, axes), "--out", tmp_path, "--name", "it").exit_code == 0
    picture = tmp_path / "direct" / "it" / "plots" / "sweep.png"
    assert imread(picture).std() > 0.01
    picture.unlink()
    assert str(picture) in cli("plot", tmp_path / "direct" / "it").stdout.splitlines()
    assert picture.is_file()
