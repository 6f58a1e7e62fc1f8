"""Sweeps cell by cell: stopped ones are finished, failed cells cost nothing but themselves; one writer per run."""

from __future__ import annotations

import json
import signal

import pytest
from whole_runs import DIRECT, HEAT, cli, files, finished, process, status, write_scenario

import toolkit
from toolkit.core.errors import ScenarioError
from toolkit.runs import execute, work
from toolkit.runs.lock import locked

SWEEP = ("output: {samples", "sweep: {run.seed: [0, 1], data.seed: [1, 2]}\noutput: {samples")


def test_a_sweep_that_was_stopped_is_finished_by_resume(tmp_path):
    path = write_scenario(
        tmp_path, HEAT, SWEEP, ("steps: 4", "steps: 200"), ("checkpoint_every: 2", "checkpoint_every: 100")
    )
    running = process("run", path, "--out", tmp_path, "--name", "it")
    for line in running.stderr or ():
        if line.startswith("step"):
            break
    running.send_signal(signal.SIGTERM)
    assert finished(running)[0] == 75
    sweep = tmp_path / "heat" / "it"
    listed = json.loads((sweep / "sweep.json").read_text())["cells"]
    assert len(listed) == 4
    # The full key, because both axes end in the same word.
    assert all(cell.startswith("run.seed=") and "data.seed=" in cell for cell in listed)
    assert [status(cell)["status"] for cell in sweep.iterdir() if cell.is_dir()] == ["interrupted"]
    assert cli("resume", sweep).exit_code == 0
    assert [status(sweep / cell)["status"] for cell in listed] == ["done"] * 4


def test_a_failed_cell_does_not_cost_the_others_and_is_run_again(tmp_path):
    rates = ("output:", "sweep: {update.optimizer.learning_rate: [1e300, 1.0]}\noutput:")
    path = write_scenario(tmp_path, DIRECT, rates)
    result = cli("run", path, "--out", tmp_path, "--name", "it")
    assert result.exit_code == 3
    sweep = tmp_path / "direct" / "it"
    assert sorted(status(cell)["status"] for cell in sweep.iterdir() if cell.is_dir()) == ["done", "failed"]
    again = cli("resume", sweep)
    assert again.exit_code == 3
    assert "is done" in again.stderr
    assert "1 of 2 cells done" in again.stderr


def test_a_bug_in_one_cell_is_told_as_such(tmp_path, monkeypatch):
    path = write_scenario(tmp_path, DIRECT, ("output:", "sweep: {run.seed: [0, 1]}\noutput:"))
    original, calls = work.build, []

    def broken_once(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("a bug")
        return original(*arguments)

    monkeypatch.setattr(work, "build", broken_once)
    sweep = execute.run_sweep(toolkit.load_scenario(path), tmp_path, "it")
    assert list(sweep.failed.values()) == ["ZeroDivisionError: a bug"]
    assert len(sweep.done) == 1


def test_a_sweep_without_its_device_leaves_nothing(tmp_path):
    path = write_scenario(tmp_path, HEAT, SWEEP)
    assert cli("run", path, "--device", "gpu:7", "--out", tmp_path / "out").exit_code == 4
    assert not (tmp_path / "out").exists()


def test_plots_of_a_sweep_are_those_of_its_cells(tmp_path):
    path = write_scenario(tmp_path, DIRECT, ("output:", "sweep: {run.seed: [0, 1]}\noutput:"))
    assert cli("run", path, "--out", tmp_path, "--name", "it").exit_code == 0
    assert cli("plot", tmp_path / "direct" / "it").exit_code == 0
    pictures = {name.rpartition("/")[2] for name in files(tmp_path / "direct" / "it") if name.endswith(".png")}
    assert "learning_curves.png" in pictures


def test_a_directory_has_one_writer(tmp_path):
    with locked(tmp_path), pytest.raises(ScenarioError, match="in use by another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert tmp_path.is_dir()


def test_a_second_resume_is_refused_while_the_first_works(tmp_path):
    path = write_scenario(tmp_path, DIRECT)
    assert cli("run", path, "--out", tmp_path, "--name", "it").exit_code == 0
    run = tmp_path / "direct" / "it"
    (run / "run.json").write_text((run / "run.json").read_text().replace('"done"', '"interrupted"'))
    with locked(run):
        result = cli("resume", run)
    assert result.exit_code == 2
    assert "in use by another process" in result.stderr
    assert status(run)["status"] == "interrupted"
