"""The members of a batch on a Dask cluster, however that was deployed; run directories have to be on a shared disk.

Each thread of a Dask worker has a process of the kind that a batch starts on one machine (`batch_worker`), so members
are computed, stopped and isolated in the same way. If a Dask worker is lost, Dask hands its members to others, which go
on from their checkpoints.
"""

from __future__ import annotations

import math
import os
import queue
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from distributed import Client, Future

from toolkit.core.errors import ScenarioError
from toolkit.runs.batch_dask_worker import Processes, stop, work
from toolkit.runs.batch_process import GO_ON
from toolkit.runs.batch_state import STOP_SECONDS, STOPPING, TICK, MemberState, Order

CONNECT_SECONDS = 15.0
ADDRESS = re.compile(r"(?:tcp|tls|ws|wss)://\S+:[0-9]+")

Inbox = queue.SimpleQueue[tuple[str, Any]]
"""(path of a member, report or finished future)."""


class DaskCluster:
    """Does an order on the cluster of a scheduler, `tcp://host:port`; ScenarioError if none answers there."""

    def __init__(self, address: str):
        self._address = address
        advice = "start one with `dask scheduler`, and give the address that it prints, such as tcp://10.0.0.5:8786"
        if not ADDRESS.fullmatch(address):
            raise ScenarioError(f"--scheduler: {address!r} is not the address of a Dask scheduler; {advice}")
        try:
            self._client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except OSError as error:
            raise ScenarioError(f"--scheduler: no Dask scheduler answers at {address}; {advice}") from error

    def __call__(self, order: Order) -> None:
        """Return when every member has ended, or when everything was asked to stop and has."""
        try:
            _Members(self._client, self._address, order).run()
        finally:
            self._client.close()


class _Members:
    def __init__(self, client: Client, address: str, order: Order):
        self._client, self._address, self._order = client, address, order
        self._name = f"phinverse-batch-{uuid.uuid4().hex[:12]}"
        self._inbox: Inbox = queue.SimpleQueue()
        self._at: dict[str, tuple[MemberState, Future]] = {}

    def run(self) -> None:
        order, client = self._order, self._client
        workers = client.scheduler_info(n_workers=-1)["workers"]
        threads = sum(worker["nthreads"] for worker in workers.values())
        order.events.message(f"{self._address}: {len(workers)} workers, {threads} members at a time")
        # Not more than there is to do, and none on workers that join later.
        share = math.ceil(len(order.waiting()) / max(1, len(workers)))
        early = {address: min(worker["nthreads"], share) for address, worker in workers.items()}
        client.register_plugin(Processes(self._name, early), name=self._name)
        client.subscribe_topic(self._name, self._hear)
        try:
            while self._at or (not order.stopping and order.waiting()):
                if order.stopping:
                    self._stop()
                    return
                for state in order.ready():
                    if os.fspath(state.member.path.resolve()) not in self._at:
                        self._submit(state)
                self._listen()
                order.events.tick()
        except BaseException:
            self._cancel(list(self._at))
            raise
        finally:
            client.unregister_worker_plugin(self._name)

    def _hear(self, event: tuple[float, Any]) -> None:
        """A report of a member, in a thread of Dask's."""
        self._inbox.put((event[1]["path"], event[1]))

    def _submit(self, state: MemberState) -> None:
        task = self._order.task(state, trust_lock=True)
        future = self._client.submit(work, task, self._name, pure=False, key=f"{state.member.name}-{uuid.uuid4().hex}")
        self._at[task["path"]] = state, future
        future.add_done_callback(lambda done: self._inbox.put((task["path"], done)))

    def _listen(self) -> None:
        timeout = TICK
        while True:
            try:
                path, report = self._inbox.get(timeout=timeout)
            except queue.Empty:
                return
            timeout = 0.0
            state, future = self._at.get(path, (None, None))
            if state is None:
                continue
            if report is future:
                del self._at[path]
                self._ended(state, report)
            elif isinstance(report, Mapping):
                if report["event"] == "begin":
                    self._order.begun(state)
                elif state.status == "running":
                    self._order.reported(state, report)

    def _ended(self, state: MemberState, future: Future) -> None:
        if future.status == "finished":
            report = future.result()
            state.crashed = report["crashed"]
            self._order.reported(state, report)
        else:
            reason = str(future.exception()) if future.status == "error" else f"its task was {future.status}"
            state.crashed = True
            self._order.ended(state, "failed", f"{reason}; {GO_ON}")

    def _stop(self) -> None:
        """Take back what has not begun, and wait for the checkpoints of what has."""
        self._order.events.message(STOPPING)
        self._cancel([path for path, (state, _) in self._at.items() if state.status == "waiting"])
        deadline = time.monotonic() + STOP_SECONDS
        while self._at and time.monotonic() < deadline:
            # Again and again, as on one machine: a signal while libraries load goes by unheard.
            self._client.run(stop, self._name, on_error="ignore")
            second = time.monotonic() + 1
            while self._at and time.monotonic() < second:
                self._listen()
                self._order.events.tick()
        for state, _ in self._at.values():
            self._order.ended(state, "interrupted", "it did not answer")

    def _cancel(self, paths: list[str]) -> None:
        self._client.cancel([self._at.pop(path)[1] for path in paths], force=True)
