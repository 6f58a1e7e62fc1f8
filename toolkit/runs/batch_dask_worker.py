"""What a batch does inside the workers of a Dask cluster: it starts processes beside them and passes on their reports.

Dask workers load this module, and through it nothing that takes long: the numeric libraries belong to the processes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from toolkit.runs import batch_process
from toolkit.runs.batch_process import GO_ON, Process

PROGRESS_SECONDS = 2.0
"""At most one report of progress of a member in this time: each passes through the scheduler."""


class Processes(WorkerPlugin):
    """The processes beside one Dask worker: idle ones wait for a next member, all end with the batch. `early` says how
    many start at once on which worker."""

    def __init__(self, name: str, early: Mapping[str, int]):
        self.name = name
        self._early = dict(early)

    def setup(self, worker: Worker) -> None:
        """Called by Dask on each worker, also on those that join later."""
        self._lock = threading.Lock()
        self._idle: list[tuple[Process, batch_process.Inbox]] = []
        self._busy: list[Process] = []
        self._closed = False
        self._threads = max(1, batch_process.cores() // worker.state.nthreads)
        # They load their libraries while the members are still on their way.
        for _ in range(self._early.get(worker.address, 0)):
            self._idle.append(self._new())

    def teardown(self, worker: Worker) -> None:
        """Called by Dask when the batch is over or the worker closes: members that are running save a checkpoint."""
        with self._lock:
            self._closed = True
            for process, _ in self._idle:
                process.dismiss()
        self.stop()

    def stop(self) -> None:
        """Ask the members that are running to stop."""
        with self._lock:
            for process in self._busy:
                process.stop()

    def work(self, task: Mapping[str, Any], worker: Worker) -> dict[str, Any]:
        """Do one member and pass on what it reports; its end."""
        process, inbox = self._take()
        process.give(task)
        worker.log_event(self.name, {"path": task["path"], "event": "begin"})
        told = time.monotonic()
        while True:
            _, report = inbox.get()
            if report is None:
                reason, trace = f"{process.why()}; {GO_ON}", process.last_words()
                with self._lock:
                    self._busy.remove(process)
                process.wait()
                return {"event": "end", "status": "failed", "reason": reason, "trace": trace, "crashed": True}
            if report["event"] == "end":
                with self._lock:
                    self._busy.remove(process)
                    self._idle.append((process, inbox))
                    if self._closed:
                        process.dismiss()
                return {**report, "crashed": False}
            if report["event"] == "progress":
                if time.monotonic() - told < PROGRESS_SECONDS:
                    continue
                told = time.monotonic()
            worker.log_event(self.name, {"path": task["path"], **report})

    def _take(self) -> tuple[Process, batch_process.Inbox]:
        with self._lock:
            taken = None
            while self._idle and taken is None:
                process, inbox = self._idle.pop()
                if process.alive:
                    taken = process, inbox
                else:
                    # Ended without a member, by somebody else or for want of memory: no member is to pay for it.
                    process.wait()
            taken = taken or self._new()
            self._busy.append(taken[0])
            return taken

    def _new(self) -> tuple[Process, batch_process.Inbox]:
        inbox: batch_process.Inbox = queue.SimpleQueue()
        return Process(batch_process.environment(self._threads), inbox), inbox


def work(task: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Task of the cluster: one member, in a process beside this Dask worker."""
    worker = get_worker()
    plugin = worker.plugins[name]
    assert isinstance(plugin, Processes)
    return plugin.work(task, worker)


def stop(name: str, dask_worker: Worker) -> None:
    """Ask the members on a Dask worker to stop."""
    plugin = dask_worker.plugins.get(name)
    if isinstance(plugin, Processes):
        plugin.stop()
