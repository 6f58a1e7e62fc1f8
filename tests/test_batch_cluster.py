"""`phinverse batch --scheduler`: a real Dask scheduler and two workers on this machine, one of them killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from batch_cases import PARABOLA, assert_same_results, members, statuses
from whole_runs import cli, execute, finished, process, recorded_steps, status, write_scenario

from toolkit.runs.batch_dask_worker import Processes

DASK = Path(sys.executable).with_name("dask")
SEEDS = ("output: {", "sweep: {run.seed: [0, 1, 2]}\noutput: {every: 100, ")


@pytest.fixture
def cluster(tmp_path):
    """(address, workers): a scheduler and two workers of one thread, as processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*arguments):
        command = [str(DASK), *arguments, "--no-dashboard"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    scheduler = start("scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2])
    place = ("--local-directory", str(tmp_path / "dask"))
    workers = [start("worker", address, "--nthreads", "1", "--no-nanny", *place) for _ in range(2)]
    try:
        yield address, workers
    finally:
        # A worker that is asked to end may wait for a scheduler that is ending, too.
        for started in (*workers, scheduler):
            started.kill()
            started.wait()


def parent(pid):
    """The process that started a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(running, folder, count, step):
    """The directories of this many members, once each has recorded that step."""
    deadline = time.monotonic() + 120
    while True:
        found = list(members(folder).values())
        if len(found) >= count and all(max(recorded_steps(run), default=0) >= step for run in found):
            return found
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_members_of_a_lost_worker_go_on_elsewhere(tmp_path, cluster):
    address, workers = cluster
    rare = ("validate_every: 2, checkpoint_every: 2", "validate_every: 100, checkpoint_every: 20")
    path = write_scenario(tmp_path, PARABOLA, SEEDS, ("steps: 4", "steps: 400"), rare)
    running = process("batch", path, "--scheduler", address, "--out", tmp_path / "out")
    victim = wait_for(running, tmp_path / "out", 1, 25)[0]
    before = status(victim)
    assert before["status"] == "running"
    lost = parent(before["pid"])
    assert lost in [worker.pid for worker in workers]
    os.kill(lost, signal.SIGKILL)
    code, _, err = finished(running)
    assert code == 0, err
    assert statuses(tmp_path / "out") == ["done"] * 3
    after = status(victim)
    assert after["started"] == before["started"], "it went on and did not begin anew"
    assert after["pid"] != before["pid"]
    single = execute(victim / "scenario.yaml", tmp_path / "single")
    single.stored.close()
    assert_same_results(single.path, victim)


def test_a_signal_checkpoints_members_on_the_cluster(tmp_path, cluster):
    address, _ = cluster
    path = write_scenario(tmp_path, PARABOLA, SEEDS, ("steps: 4", "steps: 1000000"))
    running = process("batch", path, "--scheduler", address, "--out", tmp_path / "out")
    wait_for(running, tmp_path / "out", 2, 5)
    running.send_signal(signal.SIGTERM)
    code, _, err = finished(running)
    assert code == 75, err
    assert statuses(tmp_path / "out") == ["interrupted"] * 2
    assert "0 of 3 members done" in err


def test_a_process_that_died_before_it_had_a_member_costs_none(tmp_path):
    worker = SimpleNamespace(address="tcp://here", state=SimpleNamespace(nthreads=2), log_event=lambda *event: None)
    elsewhere = Processes("it", {"tcp://there": 2})
    elsewhere.setup(worker)
    assert elsewhere._idle == []
    plugin = Processes("it", {"tcp://here": 2})
    plugin.setup(worker)
    early = [started for started, _ in plugin._idle]
    assert len(early) == 2
    for started in early:
        os.kill(started.pid, signal.SIGKILL)
    while any(started.alive for started in early):
        time.sleep(0.01)
    taken, _ = plugin._take()
    assert taken.alive
    assert plugin._idle == []
    plugin.teardown(worker)
    taken.dismiss()
    taken.wait()


def test_without_a_scheduler_there_is_a_message(tmp_path, monkeypatch):
    path = write_scenario(tmp_path, PARABOLA)
    both = cli("batch", path, "--scheduler", "tcp://127.0.0.1:9", "--workers", 2)
    assert both.exit_code == 2
    assert "--workers" in both.stderr
    bad = cli("batch", path, "--scheduler", "nonsense://here", "--out", tmp_path / "out")
    assert bad.exit_code == 2
    assert "'nonsense://here' is not the address of a Dask scheduler" in bad.stderr
    code, _, err = finished(process("batch", path, "--scheduler", "tcp://127.0.0.1:9", "--out", tmp_path / "out"))
    assert code == 2, err
    assert "no Dask scheduler answers at tcp://127.0.0.1:9;" in err
    assert "Traceback" not in err
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "toolkit.runs.batch_cluster", raising=False)
    absent = cli("batch", path, "--scheduler", "tcp://127.0.0.1:9", "--out", tmp_path / "out")
    assert absent.exit_code == 4
    assert "pip install 'phinverse[cluster]'" in absent.stderr
    assert not (tmp_path / "out").exists()
