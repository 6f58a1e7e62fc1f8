"""`phinverse batch`: what is done stays, what was interrupted goes on, what failed is told and repeated on demand."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from batch_cases import PARABOLA, assert_same_results, forget_plugins, install_plugins, members, statuses
from typer.testing import CliRunner
from whole_runs import DIRECT, HEAT, WAVE, cli, execute, finished, process, status, wait_for_step, write_scenario

import toolkit
from toolkit.runs import batch as batches
from toolkit.runs import batch_process, batch_state
from toolkit.runs.lock import locked
from typer_cli import app

RATES = ("output:", "sweep: {update.optimizer.learning_rate: [1.0, 0.5], run.seed: [0, 1]}\noutput:")
LONG = (
    ("steps: 4", "steps: 400"),
    ("validate_every: 2", "validate_every: 50"),
    ("checkpoint_every: 2", "checkpoint_every: 20"),
    ("plots: false", "plots: false, every: 100"),
)


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """PDEs that break in one way each."""
    install_plugins(tmp_path, monkeypatch)
    yield
    forget_plugins()


def only_member(folder):
    """The directory of the one run below a folder, once there is one."""
    deadline = time.monotonic() + 60
    while not (found := list(members(folder).values())):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found[0]


def test_members_have_the_numbers_of_single_runs_and_are_done_once(tmp_path, monkeypatch):
    sweep = write_scenario(tmp_path, DIRECT, RATES)
    others = [write_scenario(tmp_path, HEAT), write_scenario(tmp_path, WAVE)]
    arguments = ("batch", sweep, *others, "--workers", 2, "--out", tmp_path / "out")
    result = cli(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "6 of 6 members done" in result.stderr
    assert result.stderr.splitlines()[-1] == f"next: phinverse compare {shlex.join(result.stdout.splitlines())}"
    directories = [tmp_path / line for line in result.stdout.splitlines()]
    assert [path.parent.name for path in directories] == ["direct", "heat", "wave"]
    with toolkit.open_sweep(directories[0]) as ds:
        assert ds.train_loss.sel(learning_rate=0.5, seed=1).notnull().any()
    assert (directories[0] / "metrics.nc").is_file()
    with toolkit.open_sweep(directories[0], "fields") as ds:
        assert ds.initial_temperature.sel(learning_rate=0.5, seed=1).notnull().all()
    assert (directories[0] / "fields.nc").is_file()

    for path, directory in zip(others, directories[1:], strict=True):
        single = execute(path, tmp_path / "single")
        single.stored.close()
        assert_same_results(single.path, directory)
    assert cli("run", sweep, "--out", tmp_path / "single", "--name", "it").exit_code == 0
    for cell, directory in members(directories[0]).items():
        assert_same_results(tmp_path / "single" / "direct" / "it" / cell, directory)

    def no_process(*arguments):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(batches, "Process", no_process)
    again = cli(*arguments)
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    assert "6 done before" in again.stderr


def test_failures_cost_only_themselves_and_are_repeated_on_demand(tmp_path, plugins):
    """Of ten members one diverges and one has a plugin with a bug: eight are done, two explained."""
    diverging = write_scenario(
        tmp_path, DIRECT, ("output:", "sweep: {update.optimizer.learning_rate: [1e300, 1.0]}\noutput:")
    )
    broken = {}
    for pde in ("bug", "crash", "absent"):
        changes = (("name: parabola", f"name: {pde}"), ("pde: parabola", f"pde: {pde}"))
        broken[pde] = write_scenario(tmp_path, PARABOLA, *changes)
    fine = write_scenario(tmp_path, PARABOLA, ("output:", "sweep: {run.seed: [0, 1, 2, 3, 4, 5, 6]}\noutput:"))
    result = failing("batch", diverging, broken["bug"], fine, "--workers", 1, "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert "8 of 10 members done, 2 failed" in result.stderr
    for words in (
        "direct/learning_rate=1e+300",
        "finite",
        "ZeroDivisionError: a bug in a plugin",
        'broken_plugins.py", line',
    ):
        assert words in result.stderr, words
    assert statuses(tmp_path / "out") == ["done"] * 8 + ["failed"] * 2
    assert result.stderr.splitlines()[-1].endswith("--retry-failed")

    failed = next(p for p in members(tmp_path / "out" / "direct").values() if status(p)["status"] == "failed")
    before = status(failed)
    again = cli("batch", diverging, "--out", tmp_path / "out")
    assert again.exit_code == 3
    assert status(failed) == before
    assert "1 done, 1 failed before" in again.stderr
    assert "finite" in again.stderr

    worse = failing("batch", diverging, broken["crash"], broken["absent"], "--out", tmp_path / "out", "--retry-failed")
    assert worse.exit_code == 3
    assert "1 of 3 members done, 3 failed" in worse.stderr
    assert status(failed)["started"] > before["started"]
    for words in ("signal 11 (SIGSEGV)", "these were its last words", "absent.yaml failed", "not_there_at_all"):
        assert words in worse.stderr, words
    # What took its process with it says `running` in its own words; nobody could write otherwise.
    assert statuses(tmp_path / "out" / "crash") == ["running"]


def failing(*arguments):
    """Result of the command line; not by `cli`, which takes a traceback for a bug of ours: these are of plugins."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.mark.parametrize("victim", ["worker", "batch"])
def test_a_process_that_is_killed_loses_nothing(tmp_path, victim):
    path = write_scenario(tmp_path, PARABOLA, *LONG)
    arguments = ("batch", path, "--out", tmp_path / "out")
    running = process(*arguments)
    run = only_member(tmp_path / "out")
    wait_for_step(running, run, 45)
    os.kill(status(run)["pid"] if victim == "worker" else running.pid, signal.SIGKILL)
    code, _, err = finished(running)
    if victim == "worker":
        assert code == 3
        assert "signal 9 (SIGKILL" in err
        assert "run the batch again" in err
    else:
        worker = Path(f"/proc/{status(run)['pid']}")
        deadline = time.monotonic() + 60
        while worker.exists():
            assert time.monotonic() < deadline, "what a batch leaves behind ends by itself"
            time.sleep(0.05)
        assert status(run)["status"] == "interrupted", "and saves a checkpoint first"
    began = status(run)["started"]
    again = cli(*arguments)
    assert again.exit_code == 0, again.stderr
    assert again.stderr.splitlines()[-1] == f"next: phinverse plot {run}"
    assert status(run)["started"] == began, "it went on and did not begin anew"
    single = execute(path, tmp_path / "single")
    single.stored.close()
    assert_same_results(single.path, run)


@pytest.mark.parametrize(("number", "expected", "workers"), [(signal.SIGTERM, 75, 2), (signal.SIGINT, 130, 1)])
def test_a_signal_checkpoints_all_members(tmp_path, number, expected, workers):
    endless = ("steps: 4", "steps: 1000000")
    path = write_scenario(tmp_path, PARABOLA, endless, ("output: {", "sweep: {run.seed: [0, 1, 2]}\noutput: {"))
    running = process("batch", path, "--out", tmp_path / "out", "--workers", workers)
    wait_for_step(running, only_member(tmp_path / "out"), 5)
    while len(members(tmp_path / "out")) < workers:
        time.sleep(0.02)
    running.send_signal(number)
    code, _, err = finished(running)
    assert code == expected, err
    begun = list(members(tmp_path / "out").values())
    # One for each worker was at work; the third was not begun.
    assert statuses(tmp_path / "out") == ["interrupted"] * workers
    assert all((run / "checkpoint" / "state.json").is_file() for run in begun)
    assert "0 of 3 members done" in err
    assert err.splitlines()[-1].startswith("next: phinverse batch")
    assert not any(os.path.exists(f"/proc/{status(run)['pid']}") for run in begun)  # noqa: PTH110


def test_findings_of_all_files_come_before_anything_starts(tmp_path):
    good = write_scenario(tmp_path, WAVE)
    bad = write_scenario(tmp_path, HEAT, ("diffusivity", "difusivity"))
    worse = write_scenario(tmp_path, DIRECT, ("steps: 4", "steps: many"))
    result = cli("batch", good, bad, worse, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "did you mean 'diffusivity'?" in result.stderr
    assert "direct.yaml:13" in result.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_but_missing_plugins_is_an_error_of_the_installation(tmp_path, plugins):
    path = write_scenario(tmp_path, PARABOLA, ("pde: parabola", "pde: absent"))
    result = cli("batch", path, "--out", tmp_path / "out")
    assert result.exit_code == 4
    assert "not_there_at_all" in result.stderr


def test_a_member_that_another_process_works_on_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_state, "IN_USE_SECONDS", 0.0)
    path = write_scenario(tmp_path, WAVE)
    (planned,) = batches.plan([toolkit.load_scenario(path)], tmp_path / "out").members
    planned.path.mkdir(parents=True)
    with locked(planned.path):
        result = cli("batch", path, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 3
    assert "is in use by another process" in result.stderr
    assert members(tmp_path / "out") == {}


def test_the_number_of_workers_is_checked(tmp_path):
    path = write_scenario(tmp_path, WAVE)
    assert cli("batch", path, "--workers", 0).exit_code == 2
    with pytest.raises(toolkit.ScenarioError, match="--workers"):
        batches.run_batch([toolkit.load_scenario(path)], tmp_path, workers=0)


def test_a_device_that_is_not_there_fails_its_member(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_process, "gpus", lambda: ())
    path = write_scenario(tmp_path, WAVE)
    result = cli("batch", path, "--device", "gpu:7", "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert "no device 'gpu:7'" in result.stderr
