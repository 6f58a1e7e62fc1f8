"""Runs side by side: which are meant, what differs, repetitions, equal budgets; Dataset, picture and command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread
from whole_runs import WAVE, cli, execute, status, write_scenario

import toolkit
from toolkit.commands import compare as command
from toolkit.core.errors import ScenarioError, StorageError
from toolkit.runs import atomic, datasets, peak_memory, record
from toolkit.runs.compare import budgets, columns, differing, groups_of, headings, read_members, value_at, warnings
from toolkit.runs.compare_data import numbers
from toolkit.runs.compare_plot import common_curves, comparison_figure
from toolkit.runs.metrics import to_dataset
from toolkit.runs.provenance import collect

ATTRIBUTES = datasets.global_attributes("made", "", "name: made\n", collect(("test",)), (), compile_seconds=2.0)
SCENARIO = """\
name: made
description: Made up.
pde: {type: heat, diffusivity: 8.0}
data: {type: hot_rectangles, validation: 5, seed: 1}
loss:
- {type: l2, on: final.temperature, weight: 1.0}
update:
  type: sip
  inverse_solver: {type: damped_spectral, damping: 0.1}
  optimizer: {type: adam, learning_rate: 0.001}
train: {steps: 4, checkpoint_every: 100}
run: {seed: 0}
output: {samples: 3}
"""
DP = ("type: sip\n  inverse_solver: {type: damped_spectral, damping: 0.1}", "type: dp")


def made(
    folder: Path, *changes, seconds=1.0, losses=(4.0, 3.0, 2.0, 1.0), state="done", reason=None, **metrics
) -> Path:
    """A run with these validation losses at steps 0, 1, …, `seconds` each, and other metrics."""
    folder.mkdir(parents=True)
    text = SCENARIO
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    atomic.write_text(folder / "scenario.yaml", text)
    rows = [
        {"step": i, "validation_loss": loss, "wall_seconds": i * seconds, **{n: v[i] for n, v in metrics.items()}}
        for i, loss in enumerate(losses)
    ]
    for row in rows[1:]:
        row["step_seconds"] = seconds
    if rows:
        datasets.write_dataset(folder / "metrics.nc", to_dataset(rows, ATTRIBUTES))
    name = text.partition("name: ")[2].partition("\n")[0]
    details = {"peak_memory_bytes": 2**30}
    record.write(folder / "run.json", record.RunRecord(state, reason=reason, scenario=name, details=details))
    return folder


def seed(number: int) -> tuple[str, str]:
    return ("run: {seed: 0}", f"run: {{seed: {number}}}")


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """SIP with three seeds, DP with one, and one that failed."""
    runs = tmp_path / "runs" / "made"
    for i, end in enumerate((1.0, 0.5, 3.0)):
        made(runs / f"sip{i}", seed(i), losses=(4.0, 3.0, 2.0, end), control_error=[8.0, 7.0, 6.0, 5.0 + i])
    made(runs / "dp", DP, ("0.001", "0.01"), losses=(4.0, 3.5, 2.5, 1.5, 1.2, 1.4), seconds=0.25)
    made(runs / "bad", ("0.001", "10.0"), losses=(4.0, 9.0), state="failed", reason="step 2: train_loss is nan")
    return tmp_path / "runs"


# --- which runs ---------------------------------------------------------------------------------------------------


def labels(given, out) -> list[str]:
    return [member.label for member in read_members(given, out)]


def test_runs_sweeps_folders_and_names_are_found_once(several):
    everything = ["bad", "dp", "sip0", "sip1", "sip2"]
    assert labels([several], several) == labels(["made"], several) == [*everything]
    assert labels([several / "made" / "dp", "sip1", several / "made" / "dp"], several) == ["dp", "sip1"]
    assert labels([several / "made" / "dp"], several) == ["dp"]
    sweep = several / "other" / "it"
    made(sweep / "a")
    atomic.write_json(sweep / "sweep.json", {"scenario": "made", "cells": {"a": {"x": 1}, "b": {"x": 2}}})
    found = read_members([sweep, "sip0"], several)
    assert [(m.label, m.status) for m in found] == [
        ("other/it/a", "done"),
        ("other/it/b", "not begun"),
        ("made/sip0", "done"),
    ]
    assert labels([several], several) == [*(f"made/{name}" for name in everything), "other/it/a", "other/it/b"]


def test_what_holds_no_run_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"holds no run: there is no run\.json in it or below it"):
        read_members([tmp_path], tmp_path)
    with pytest.raises(ScenarioError, match="no run 'away'"):
        read_members(["away"], tmp_path)
    with pytest.raises(ScenarioError, match=r"no run in .* yet"):
        read_members(["last"], tmp_path)


def test_what_cannot_be_read_is_listed_unless_nothing_can(several):
    (several / "made" / "dp" / "run.json").write_text("{")
    (several / "made" / "sip0" / "scenario.yaml").write_text("name: [")
    found = {member.label: member for member in read_members([several], several)}
    assert {label for label, member in found.items() if member.status == "unreadable"} == {"dp", "sip0"}
    assert "run.json: it is not JSON" in (found["dp"].reason or "")
    with pytest.raises(StorageError, match=r"dp.run\.json: it is not JSON"):
        read_members(["made/dp"], several)


# --- what differs -------------------------------------------------------------------------------------------------


def test_seeds_and_what_comes_with_a_kind_are_no_columns(several):
    members = read_members([several], several)
    keys = differing(members)
    assert keys == [
        "update.type",
        "update.inverse_solver.type",
        "update.inverse_solver.damping",
        "update.optimizer.learning_rate",
        "run.seed",
    ]
    assert columns(members) == ["update.type", "update.optimizer.learning_rate"]
    assert headings(columns(members)) == {"update.type": "update", "update.optimizer.learning_rate": "learning_rate"}


def test_a_key_that_some_lack_is_a_column_where_it_says_more_than_the_kind(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", ("damping: 0.1", "damping: 0.2"))
    made(tmp_path / "c", DP)
    members = read_members([tmp_path], tmp_path)
    assert columns(members) == ["update.type", "update.inverse_solver.damping"]
    assert [group.settings["update.inverse_solver.damping"] for group in groups_of(members)] == [0.1, 0.2, None]


def test_what_no_number_depends_on_does_not_differ(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", ("samples: 3", "samples: 4"), ("Made up", "Else"), ("checkpoint_every: 100", ""))
    assert differing(read_members([tmp_path], tmp_path)) == []


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        (("weight: 1.0", "weight: 2.0"), "differ in loss (loss.0.weight)"),
        (("validation: 5", "validation: 6"), "differ in data (data.validation)"),
        (("diffusivity: 8.0", "diffusivity: 4.0"), "differ in pde (pde.diffusivity)"),
        (("seed: 1}", "seed: 2}"), ""),
        (("validation: 5", "validation: 5, train: 7"), ""),
        (("0.001", "0.002"), ""),
    ],
)
def test_other_problems_are_warned_about(tmp_path, change, warned):
    made(tmp_path / "a")
    made(tmp_path / "b", change)
    said = warnings(read_members([tmp_path], tmp_path))
    assert said == ([f"losses are not comparable: the runs {warned}"] if warned else [])


def test_shares_of_time_are_warned_about(tmp_path):
    for name, count in (("a", 0), ("b", 3), ("c", 2)):
        file = made(tmp_path / name) / "run.json"
        record.update(file, details={"updates_together": count})
    assert warnings(read_members([tmp_path / "b", tmp_path / "c"], tmp_path)) == []
    (said,) = warnings(read_members([tmp_path], tmp_path))
    assert said.startswith("seconds are not comparable: 2 of 3 runs")


# --- numbers ------------------------------------------------------------------------------------------------------


def test_repetitions_have_a_median_and_a_range(several):
    about = numbers(read_members([several], several))
    groups = {tuple(group["settings"].values()): group for group in about["groups"]}
    sip = groups["sip", 0.001]
    assert sip["n"] == 3
    assert sip["runs"] == ["sip0", "sip1", "sip2"]
    assert sip["validation_loss"]["final"] == {"median": 1.0, "min": 0.5, "max": 3.0, "n": 3}
    assert sip["validation_loss"]["best"] == {"median": 1.0, "min": 0.5, "max": 2.0, "n": 3}
    assert sip["control_error"]["final"]["median"] == 6.0
    assert sip["train_loss"]["final"] is None
    bad = groups["sip", 10.0]
    assert (bad["n"], bad["validation_loss"]["final"]) == (0, None)


def test_a_run_is_told_with_its_best_step_and_cost(several):
    about = numbers(read_members([several], several))
    runs = {run["run"]: run for run in about["runs"]}
    dp = runs["dp"]["validation_loss"]
    assert (dp["final"], dp["best"], dp["best_step"]) == (1.4, 1.2, 4)
    assert (runs["dp"]["steps"], runs["dp"]["wall_seconds"], runs["dp"]["step_seconds"]) == (5, 1.25, 0.25)
    assert (runs["dp"]["compile_seconds"], runs["dp"]["peak_memory_bytes"]) == (2.0, 2**30)
    assert runs["dp"]["control_error"]["final"] is None
    assert (runs["bad"]["status"], runs["bad"]["reason"]) == ("failed", "step 2: train_loss is nan")
    assert runs["sip2"]["settings"]["run.seed"] == 2
    assert about["columns"]["run.seed"] == "seed"


def test_budgets_are_what_all_runs_spent_that_did_not_fail(several):
    members = read_members([several], several)
    spent = budgets(members)
    # DP took 5 steps of 0.25 s, SIP 3 of 1 s; the failed run ended at step 1.
    assert (spent.seconds, spent.steps) == (1.25, 3)
    at = {member.label: member for member in members}
    assert value_at(at["dp"], "validation_loss", "wall_seconds", 1.25) == 1.4
    assert value_at(at["sip0"], "validation_loss", "wall_seconds", 1.25) == 3.0
    assert value_at(at["dp"], "validation_loss", "step", 3) == 1.5
    assert value_at(at["bad"], "validation_loss", "step", 3) is None
    assert value_at(at["dp"], "control_error", "step", 3) is None
    runs = {run["run"]: run for run in numbers(members)["runs"]}
    assert runs["sip0"]["validation_loss"]["at_equal_seconds"] == 3.0
    assert runs["sip1"]["validation_loss"]["at_equal_steps"] == 0.5


def test_between_validations_the_last_one_holds(tmp_path):
    sparse = (4.0, np.nan, np.nan, 1.0)
    made(tmp_path / "a", losses=sparse, train_loss=[np.nan, 5.0, 4.0, 3.0])
    made(tmp_path / "b", losses=(4.0, 3.0, 2.0), seconds=1.0)
    members = read_members([tmp_path], tmp_path)
    assert budgets(members).steps == 2
    assert value_at(members[0], "validation_loss", "step", 2) == 4.0
    assert value_at(members[0], "train_loss", "step", 2) == 4.0


def test_runs_without_anything_recorded_are_listed(tmp_path):
    made(tmp_path / "a", losses=(), state="failed", reason="no memory")
    members = read_members([tmp_path], tmp_path)
    about = numbers(members)
    assert (about["equal_seconds"], about["equal_steps"]) == (None, None)
    assert about["runs"][0]["steps"] is None
    assert toolkit.compare(tmp_path, out=tmp_path).sizes == {"run": 1}
    with pytest.raises(StorageError, match="none of the runs has recorded a loss"):
        comparison_figure(members)


# --- the Dataset --------------------------------------------------------------------------------------------------


def test_all_runs_are_one_dataset(several, tmp_path):
    ds = toolkit.compare([several], out=several)
    assert dict(ds.sizes) == {"run": 5, "step": 6}
    np.testing.assert_array_equal(ds.validation_loss.sel(run="dp"), [4.0, 3.5, 2.5, 1.5, 1.2, 1.4])
    np.testing.assert_array_equal(ds.validation_loss.sel(run="sip0"), [4.0, 3.0, 2.0, 1.0, np.nan, np.nan])
    assert np.isnan(ds.validation_loss.sel(run="bad", step=2))
    sip = ds.where(ds.update_type == "sip", drop=True)
    assert list(sip.run.values) == ["bad", "sip0", "sip1", "sip2"]
    assert list(ds.learning_rate.values) == [10.0, 0.01, 0.001, 0.001, 0.001]
    assert list(ds.seed.values) == [0, 0, 0, 1, 2]
    assert list(ds.status.values) == ["failed", "done", "done", "done", "done"]
    assert list(ds.group.values) == [0, 1, 2, 2, 2]
    assert list(np.isnan(ds.damping.values)) == [False, True, False, False, False]
    assert (ds.equal_seconds, ds.equal_steps, json.loads(ds.warnings)) == (1.25, 3, [])
    assert list(ds.peak_memory.values) == 5 * [2**30]
    by_seed = ds.validation_loss.where(ds.group == 2, drop=True).median("run")
    np.testing.assert_array_equal(by_seed.dropna("step"), [4.0, 3.0, 2.0, 1.0])
    datasets.write_dataset(tmp_path / "all.nc", ds)
    checker = Path(sys.executable).with_name("compliance-checker")
    done = subprocess.run([checker, "--test=cf:1.11", tmp_path / "all.nc"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    with datasets.open_dataset(tmp_path / "all.nc") as read:
        xr.testing.assert_equal(read.validation_loss, ds.validation_loss)


# --- the picture --------------------------------------------------------------------------------------------------


def test_groups_are_lines_with_bands_and_failures_crosses(several):
    figure = comparison_figure(read_members([several], several))
    (loss_steps, loss_time), (error_steps, _) = np.reshape(np.array(figure.axes, object), (2, 2))
    assert loss_steps.get_yscale() == loss_time.get_yscale() == error_steps.get_yscale() == "log"
    (band,) = loss_steps.collections
    ends = [y for x, y in band.get_paths()[0].vertices if x == 3.0]
    assert {min(ends), max(ends)} == {0.5, 3.0}
    lines = {line.get_label(): line for line in loss_steps.lines}
    median = lines["update = sip, learning_rate =\n0.001 (n = 3)"]
    np.testing.assert_array_equal(median.get_ydata(), [4.0, 3.0, 2.0, 1.0])
    assert any(line.get_marker() == "x" and line.get_xdata()[-1] == 1.0 for line in loss_steps.lines)
    # Dotted where budgets differ: three steps, 1.25 seconds.
    assert any(list(line.get_xdata()) == [3, 3] for line in loss_steps.lines)
    assert any(list(line.get_xdata()) == [1.25, 1.25] for line in loss_time.lines)
    assert loss_time.get_xlabel() == ""
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 3
    for axes in figure.axes:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_curves_of_a_group_are_compared_where_all_are_known():
    at, together = common_curves([(np.array([0.0, 2.0]), np.array([4.0, 2.0])), (np.array([0.0, 1.0]), np.ones(2))])
    np.testing.assert_array_equal(at, [0.0, 1.0])
    np.testing.assert_array_equal(together, [[4.0, 3.0], [1.0, 1.0]])


def test_more_groups_than_lines_say_so(tmp_path):
    for i in range(23):
        made(tmp_path / f"r{i:02}", ("0.001", f"{0.001 * (i + 1):.3f}"))
    figure = comparison_figure(read_members([tmp_path], tmp_path))
    assert figure.legends[0].get_title().get_text() == "2 more are not shown"


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_shows_tables_reasons_and_where_the_picture_is(several):
    done = cli("compare", several / "made", "--out", several)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    expected = "run update learning_rate seed status validation best validation at t = 1.25 s at step 3 control error"
    assert " ".join(lines[0].split()) == f"{expected} steps seconds s/step memory"
    assert lines[2].split()[:8] == ["dp", "dp", "0.01", "0", "done", "1.4", "1.2", "@"]
    assert "sip     0.001          3  1 (0.5 to 3)" in done.stdout
    assert lines[-1] == "bad: failed: step 2: train_loss is nan"
    picture = several / "made" / "comparison.png"
    assert f"picture: {picture}\n" in done.stderr
    assert done.stderr.splitlines()[-1] == f"next: phinverse plot {several / 'made' / 'sip1'}"
    assert imread(picture).shape[2] == 4


def test_the_command_gives_the_same_numbers_as_json(several, tmp_path):
    done = cli("compare", several, "--out", several, "--json", "--figure", tmp_path / "new" / "all.png")
    about = json.loads(done.stdout)
    assert about["figure"] == str(tmp_path / "new" / "all.png")
    assert imread(tmp_path / "new" / "all.png").size
    del about["figure"]
    assert about == json.loads(json.dumps(numbers(read_members([several], several))))


def test_a_picture_stands_beside_the_runs(several, tmp_path):
    def at(*given):
        return command.default_figure(read_members(given, several), several)

    assert at(several / "made") == several / "made" / "comparison.png"
    assert at(several / "made" / "dp") == several / "made" / "comparison.png"
    made(several / "other" / "it")
    assert at(several) == several / "comparison.png"
    made(tmp_path / "else" / "where" / "it")
    assert at(several / "other", tmp_path / "else") == several / "comparison.png"


def test_a_terminal_gets_a_table_with_lines(several, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")
    command.compare([str(several)], several, None, False)
    shown = capsys.readouterr().out
    assert "┃" in shown
    assert "median (min to max) over seeds" in shown
    assert "0.5 (0.5 to 3)" not in shown


def test_the_command_tells_mistakes_from_damage(several):
    assert cli("compare", "away", "--out", several).exit_code == 2
    (several / "made" / "dp" / "run.json").write_text("{")
    assert cli("compare", several / "made" / "dp", "--out", several).exit_code == 1
    done = cli("compare", several, "--out", several)
    assert done.exit_code == 0
    assert "dp: unreadable: cannot read" in done.stdout


def test_a_key_does_not_take_the_place_of_a_number(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", ("train: {steps: 4", "train: {steps: 9"))
    rows = command.run_rows(numbers(read_members([tmp_path], tmp_path)))
    assert "train.steps" in rows[0]
    assert rows[1][rows[0].index("steps")] == "3"


# --- memory -------------------------------------------------------------------------------------------------------


def test_a_run_records_its_own_peak_of_memory(tmp_path):
    if not peak_memory.STATUS.is_file():
        # Only Linux tells.
        assert peak_memory.peak_bytes() is None
        return
    block = np.ones(2**24)
    with_block = peak_memory.peak_bytes()
    assert with_block is not None
    size = block.nbytes
    del block
    peak_memory.reset()
    without = peak_memory.peak_bytes()
    assert without is not None
    # 128 MB were given back to the system; other threads may have taken a little.
    assert without < with_block - size / 2
    run = execute(write_scenario(tmp_path, WAVE), tmp_path)
    run.stored.close()
    assert 2**26 < status(run.path)["details"]["peak_memory_bytes"] < 2**36


def test_a_system_that_does_not_tell_has_no_peak(tmp_path, monkeypatch):
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(peak_memory, "RESET", tmp_path / "away" / "clear_refs")
    peak_memory.reset()
    assert peak_memory.peak_bytes() is None
