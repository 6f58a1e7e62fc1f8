"""Killed, terminated and interrupted runs: what they had done is kept, and resumed they end as if nothing had been."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from whole_runs import (
    DIRECT,
    HEAT,
    WAVE,
    cli,
    execute,
    finished,
    process,
    recorded_steps,
    status,
    wait_for_step,
    write_scenario,
)

import toolkit
from toolkit.runs import checkpoint, work

# Long enough that a process is still at it when its twelfth step has been seen.
LONG = {
    "network": (
        HEAT,
        ("layers: [3]", "layers: [3], batch_norm: true"),
        ("{steps: 4, batch_size: 2, validate_every: 2, checkpoint_every: 2}",
         "{steps: 60, batch_size: 2, validate_every: 7, checkpoint_every: 5}"),
    ),
    "direct": (
        DIRECT,
        ("{steps: 4, validate_every: 2, checkpoint_every: 2}", "{steps: 200, validate_every: 20, checkpoint_every: 5}"),
    ),
    "simulation": (WAVE, ("steps: 6, dt: 0.5", "steps: 400, dt: 0.01"), ("{plots: false}", "{plots: false, every: 2}")),
}  # fmt: skip
CASES = [("network", "torch"), ("network", "jax"), ("direct", "torch"), ("simulation", "torch")]


def long_scenario(kind: str, folder: Path) -> Path:
    text, *changes = LONG[kind]
    return write_scenario(folder, text, *changes)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Directories of whole runs by (kind, backend), each made when first asked for."""
    made: dict[tuple[str, str], Path] = {}

    def get(kind: str, backend: str) -> Path:
        if (kind, backend) not in made:
            folder = tmp_path_factory.mktemp(f"{kind}-{backend}")
            run = execute(long_scenario(kind, folder), folder, {"run.backend": backend})
            run.stored.close()
            made[kind, backend] = run.path
        return made[kind, backend]

    return get


def start(kind: str, backend: str, folder: Path):
    """A process that runs the long scenario, at its twelfth step or later; its run directory."""
    path = long_scenario(kind, folder)
    running = process("run", path, "--backend", backend, "--out", folder, "--name", "it")
    run = folder / path.stem / "it"
    wait_for_step(running, run, 12)
    return running, run


def assert_same_result(run: Path, whole: Path) -> None:
    """Parameters bit by bit, every step once with the same numbers, the same fields."""
    assert status(run)["status"] == status(whole)["status"] == "done"
    assert status(run)["reason"] is None
    arrays, state = checkpoint.load(run / "checkpoint")
    expected, expected_state = checkpoint.load(whole / "checkpoint")
    assert state["step"] == expected_state["step"]
    assert list(arrays) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    assert recorded_steps(run) == recorded_steps(whole)
    with toolkit.open_run(run) as found, toolkit.open_run(whole) as wanted:
        xr.testing.assert_equal(found.fields, wanted.fields)
        clocks = ["wall_seconds", "step_seconds"]
        xr.testing.assert_equal(found.metrics.drop_vars(clocks), wanted.metrics.drop_vars(clocks))
        if "train_loss" in found.metrics and found.metrics.train_loss.notnull().any():
            assert (found.metrics.wall_seconds.diff("step") > 0).all()


@pytest.mark.parametrize(("kind", "backend"), CASES)
def test_a_killed_run_is_resumed_as_if_nothing_had_been(tmp_path, uninterrupted, kind, backend):
    running, run = start(kind, backend, tmp_path)
    running.kill()
    assert finished(running)[0] == -signal.SIGKILL
    assert status(run)["status"] == "running"
    with toolkit.open_run(run) as stored:
        assert stored.record.status == "interrupted"
        assert stored.metrics.step[-1] >= 12
        if kind != "network":
            # What was streamed until then can be read.
            assert stored.fields.sizes["step" if kind == "direct" else "t"] >= 6
            assert stored.fields.temperature.notnull().all()

    result = cli("resume", run)

    assert result.exit_code == 0
    assert result.stdout.strip() == str(run)
    assert_same_result(run, uninterrupted(kind, backend))
    assert status(run)["command"][1:3] == ["run", str(tmp_path / f"{run.parent.name}.yaml")]


@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [("network", signal.SIGTERM, 75), ("simulation", signal.SIGTERM, 75), ("direct", signal.SIGINT, 130)],
)
def test_a_run_that_is_told_to_stop_saves_where_it_is(tmp_path, uninterrupted, kind, number, code):
    running, run = start(kind, "torch", tmp_path)
    running.send_signal(number)
    returned, out, err = finished(running)

    assert returned == code
    assert out == ""
    assert "Traceback" not in err
    assert f"`phinverse resume {run}` goes on" in err
    record = status(run)
    assert record["status"] == "interrupted"
    assert record["details"]["exit_code"] == code
    assert "stopped; " in record["reason"]
    # Saved at the very step that was recorded last, not at the last regular checkpoint.
    assert checkpoint.load(run / "checkpoint")[1]["step"] == recorded_steps(run)[-1]
    assert recorded_steps(run)[-1] < recorded_steps(uninterrupted(kind, "torch"))[-1]

    assert cli("resume", "last", "--out", tmp_path, "--quiet").exit_code == 0
    assert_same_result(run, uninterrupted(kind, "torch"))


def test_a_run_that_runs_or_is_done_is_not_resumed(tmp_path):
    running, run = start("simulation", "torch", tmp_path)
    running.send_signal(signal.SIGSTOP)
    try:
        result = cli("resume", run)
        assert result.exit_code == 2
        assert f"is still running as process {running.pid}" in result.stderr
    finally:
        running.kill()
        finished(running)
    assert cli("resume", run).exit_code == 0

    done = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = cli("resume", run)
    assert result.exit_code == 2
    assert "is done; there is nothing to resume" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == done


def test_a_failed_run_may_be_resumed_from_before_its_failure(tmp_path, monkeypatch):
    from toolkit.core.errors import StorageError
    from toolkit.runs import session

    append, seen = session.MetricsWriter.append, []

    def full(self, record):
        seen.append(record["step"])
        if record["step"] == 3 and seen.count(3) == 1:
            raise StorageError("cannot write metrics.jsonl: the disk is full")
        append(self, record)

    monkeypatch.setattr(session.MetricsWriter, "append", full)
    path = write_scenario(tmp_path, HEAT)
    result = cli("run", path, "--out", tmp_path, "--name", "it")
    run = tmp_path / "heat" / "it"
    assert result.exit_code == 1
    assert result.stderr.rstrip().endswith("the disk is full")
    assert status(run)["status"] == "failed"
    assert status(run)["reason"] == "cannot write metrics.jsonl: the disk is full"

    assert cli("resume", run).exit_code == 0
    whole = execute(path, tmp_path / "whole")
    whole.stored.close()
    assert_same_result(run, whole.path)


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    path = write_scenario(tmp_path, HEAT)
    assert cli("run", path, "--out", tmp_path, "--name", "it", "--steps", 1).exit_code == 0
    run = tmp_path / "heat" / "it"
    shutil.rmtree(run / "checkpoint")
    (run / "run.json").write_text((run / "run.json").read_text().replace('"done"', '"interrupted"'))
    shutil.rmtree(run / "plots", ignore_errors=True)
    result = cli("resume", run)
    assert result.exit_code == 0
    assert status(run)["status"] == "done"
    assert recorded_steps(run) == [0, 1]


def test_an_interrupt_between_two_updates_is_told(tmp_path, monkeypatch):
    """Ctrl-C for the second time ends a run wherever it is, also outside of what it does itself."""

    class Interrupted:
        def __init__(self, steps):
            self._steps, self._count = steps, 0

        def __next__(self):
            self._count += 1
            if self._count == 4:
                raise KeyboardInterrupt
            return next(self._steps)

        def throw(self, error):
            return self._steps.throw(error)

    original = work.stepwise
    monkeypatch.setattr(work, "stepwise", lambda *arguments: Interrupted(original(*arguments)))
    with pytest.raises(KeyboardInterrupt):
        execute(write_scenario(tmp_path, HEAT), tmp_path)
    found = status(tmp_path / "heat" / "it")
    assert (found["status"], found["reason"]) == ("interrupted", "interrupted twice")
    assert recorded_steps(tmp_path / "heat" / "it") == [0, 1, 2]
