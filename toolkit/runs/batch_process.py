"""The processes of a batch as it sees them: started afresh (never forked), told what to do, listened to, ended.

A forked process inherits the locks of torch's and XLA's threads but not the threads; a fresh one does not. It also can
be given its own environment, which is where numeric libraries look for the number of their threads and for GPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any

THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    # Read by XLA when it makes its pool of threads for the CPU.
    "PJRT_NPROC",
)
WORKER = "toolkit.runs.batch_worker"
END_SECONDS = 20.0
"""How long an idle process may take to end."""
GO_ON = "run the batch again, it goes on from the last checkpoint"
LAST_WORDS = 6000
"""Characters of what a process wrote to stderr that are shown when it has ended unexpectedly."""

Inbox = SimpleQueue[tuple["Process", dict[str, Any] | None]]
"""(process, report); None when the process has ended."""


class Process:
    """One process, which does one member at a time."""

    def __init__(self, environment: Mapping[str, str], inbox: Inbox):
        self._inbox = inbox
        # A file, not a pipe: nobody has to read it while the process lives.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._since = 0
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(environment),
            encoding="utf-8",
            # A session of its own: Ctrl-C is for the batch alone, which then stops its processes in order.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def give(self, task: Mapping[str, Any]) -> None:
        """Hand over a member; a process that has just ended will say so through the inbox."""
        self._since = os.fstat(self._errors.fileno()).st_size
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        except OSError:
            return

    def stop(self) -> None:
        """Ask it to checkpoint what it does, and to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once, and wait until it has gone."""
        self._process.kill()
        self.wait()

    def dismiss(self) -> None:
        """Let an idle process end by itself."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            # It has ended already with something unread in the pipe.
            return

    def wait(self) -> None:
        """Wait for its end and give back what belonged to it; what does not end is killed."""
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        self.dismiss()
        self._errors.close()

    def why(self) -> str:
        """How it ended, for people."""
        code = self._process.returncode
        if code is not None and code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = "unknown"
            hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
            return f"its process {self.pid} was ended by signal {-code} ({name}{hint})"
        return f"its process {self.pid} ended with exit code {code}"

    def last_words(self) -> str:
        """The end of what a process that has ended wrote to stderr about its last member."""
        size = os.fstat(self._errors.fileno()).st_size
        start = max(self._since, size - 10 * LAST_WORDS)
        # The process has ended: until then it shares this position in the file.
        self._errors.seek(start)
        lines = self._errors.read().decode(errors="replace").splitlines()
        # Of a crash Python also lists all its modules, in one very long line.
        return "\n".join(line for line in lines if not line.startswith("Extension modules:")).strip()[-LAST_WORDS:]

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                # A process that is killed may leave half a line.
                if line.endswith("\n"):
                    self._inbox.put((self, json.loads(line)))
        self._process.wait()
        self._inbox.put((self, None))


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES may name: the GPUs of the driver, or those that were left visible by the user."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # CUDA ignores what follows the first one that is not there, conventionally -1.
        return tuple(names[: names.index("-1")] if "-1" in names else [name for name in names if name])
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines())))


def environment(threads: int, gpu: str | None = None, shared: bool = False) -> dict[str, str]:
    """This process's environment with at most so many threads, and one GPU, alone or `shared` with other processes."""
    result = dict(os.environ)
    # What the user, a batch system or a cluster says for OpenMP is meant for all of them.
    for name in THREADS:
        given = result.get(name, "")
        result[name] = str(min(int(given), threads) if given.isdigit() and int(given) else threads)
        threads = int(result["OMP_NUM_THREADS"])
    if threads == 1 and "xla_cpu_multi_thread_eigen" not in result.get("XLA_FLAGS", ""):
        result["XLA_FLAGS"] = f"{result.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    if gpu is not None:
        # By this variable, because JAX takes memory on every GPU that it sees.
        result["CUDA_VISIBLE_DEVICES"] = gpu
        if shared:
            result.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return result


def device(wanted: str, visible: Sequence[str]) -> tuple[int | None, str | None]:
    """(GPU that a member must have or None for any, `run.device` in a process that sees one GPU only)."""
    number = wanted.partition(":")[2]
    if not number or int(number) >= len(visible):
        return None, None
    return int(number), "gpu:0"
