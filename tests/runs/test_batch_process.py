"""The processes of a batch: their environment, how they end, and that nothing mixes with their reports."""

from __future__ import annotations

import os
import queue
import signal
import stat

import pytest

from toolkit.runs import batch_process
from toolkit.runs.batch_process import Process, device, environment, gpus


def test_threads_are_divided_and_a_smaller_wish_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("MKL_NUM_THREADS", "16")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    given = environment(4)
    wanted = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PJRT_NPROC": "2"}
    assert wanted.items() <= given.items()
    assert given["XLA_FLAGS"] == "--xla_dump_to=here"
    assert environment(1)["XLA_FLAGS"] == "--xla_dump_to=here --xla_cpu_multi_thread_eigen=false"
    assert os.environ["MKL_NUM_THREADS"] == "16", "the environment of this process is left alone"


def test_a_process_sees_one_gpu(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    assert environment(1, "3")["CUDA_VISIBLE_DEVICES"] == "3"
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in environment(1, "3")
    assert environment(1, "3", shared=True)["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_gpus_are_those_of_the_driver_that_are_visible(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho '  MIG 1g'\necho 'GPU 1: A (UUID: GPU-2)'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ("0", "1")
    for value, expected in (("1", ("1",)), ("", ()), ("2, GPU-7", ("2", "GPU-7")), ("0,-1,1", ("0",))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert gpus() == expected
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert gpus() == ()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("auto", (None, None)), ("cpu", (None, None)), ("gpu", (None, None)), ("gpu:1", (1, "gpu:0"))],
)
def test_a_member_that_names_a_gpu_gets_a_process_that_sees_it(wanted, expected):
    assert device(wanted, ("5", "7")) == expected
    # Left to the backend to refuse, which knows what there is.
    assert device(wanted, ()) == (None, None)


def test_a_process_that_ends_says_how(monkeypatch, tmp_path):
    module = tmp_path / "mute.py"
    module.write_text("import sys\nsys.stderr.write('x' * 9000 + 'end')\nsys.stdin.readline()\nsys.exit(7)\n")
    monkeypatch.setattr(batch_process, "WORKER", "mute")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    inbox: batch_process.Inbox = queue.SimpleQueue()
    ended = Process(dict(os.environ), inbox)
    # The first task's words are all that was written so far, too.
    ended.give({})
    assert inbox.get(timeout=60) == (ended, None)
    assert "ended with exit code 7" in ended.why()
    assert len(ended.last_words()) <= batch_process.LAST_WORDS
    ended.wait()
    killed = Process(dict(os.environ), inbox)
    os.kill(killed.pid, signal.SIGKILL)
    assert inbox.get(timeout=60) == (killed, None)
    assert "signal 9 (SIGKILL, perhaps for want of memory)" in killed.why()
    killed.wait()
    killed.wait()
