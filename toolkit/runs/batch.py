"""Many scenarios and sweeps in parallel processes: what is done stays, what was interrupted goes on, the rest begins.

    run_batch(scenarios) → plan → processes ⇄ members → metrics.nc of sweeps → Batch

A member is done in its own run directory exactly as `run` and `resume` would do it; its lock decides where two batches
meet. One that fails costs nothing but itself, even if it takes its process with it. Asked to stop, all processes
checkpoint first.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.errors import PhinverseError, ScenarioError
from toolkit.runs import batch_process, late, outcome, record
from toolkit.runs.batch_plan import Member, Plan, check_directories, create_directories, plan
from toolkit.runs.batch_process import GO_ON, Process
from toolkit.runs.batch_state import STOP_SECONDS, STOPPING, TICK, BatchEvents, MemberState, Order
from toolkit.runs.directory import RunDirectory
from toolkit.runs.events import Events
from toolkit.runs.stopping import stop_requests
from toolkit.scenario.scenario import Scenario

Cluster = Callable[[Order], None]
"""Does all members of an order elsewhere than in processes of this one."""


@dataclass(frozen=True)
class Batch:
    """A batch that has ended."""

    paths: tuple[Path, ...]
    """Directories of runs and sweeps, one per scenario."""
    members: tuple[MemberState, ...]
    problems: tuple[str, ...]
    """Sweeps whose metrics could not be put together."""
    stopped: int | None
    """Exit code of the signal that stopped it, if any."""

    @property
    def failed(self) -> tuple[MemberState, ...]:
        """Members that are neither done nor only interrupted by the request to stop."""
        fine = ("done", "waiting", "interrupted") if self.stopped is not None else ("done",)
        return tuple(state for state in self.members if state.status not in fine)

    @property
    def done(self) -> tuple[MemberState, ...]:
        """Members that are done, by this batch or before it."""
        return tuple(state for state in self.members if state.status == "done")


def run_batch(
    scenarios: Sequence[Scenario],
    out: str | Path = "runs",
    workers: int | None = None,
    retry_failed: bool = False,
    events: BatchEvents | None = None,
    command: tuple[str, ...] | None = None,
    cluster: Cluster | None = None,
) -> Batch:
    """Do what is missing of these scenarios and sweeps in `workers` processes, by default half as many as cores, or
    one per GPU; or on a `cluster`. Called again it finds its run directories again; members that failed are begun anew
    with `retry_failed` only."""
    if workers is not None and workers < 1:
        raise ScenarioError(f"--workers: expected a number ≥ 1, got {workers}")
    planned = plan(scenarios, Path(out))
    check_directories(planned.members)
    create_directories(planned)
    events = events or BatchEvents()
    states = [_state(member, retry_failed) for member in planned.members]
    visible = batch_process.gpus() if any(s.member.scenario.sections.run.device != "cpu" for s in states) else ()
    waiting = sum(state.status == "waiting" for state in states)
    count = min(waiting, workers or len(visible) or max(1, batch_process.cores() // 2))
    events.begin(states, 0 if cluster else count)
    if count and planned.sweeps:
        # While the processes load their libraries, not when all of them have ended.
        threading.Thread(target=late.load_for_combining).start()
    with ExitStack() as ending:
        with stop_requests() as stop:
            order = Order(states, retry_failed, events, stop, command or tuple(sys.argv))
            if count and cluster:
                cluster(order)
            elif count:
                work = _Work(order, count, visible)
                # Processes take a moment to end, in which the sweeps are put together.
                ending.callback(work.wait)
                work.run()
        stopped = stop.exit_code if any(state.status in ("waiting", "interrupted") for state in states) else None
        problems = () if stopped is not None else _combine(planned, events)
    return Batch(planned.paths, tuple(states), problems, stopped)


def _state(member: Member, retry_failed: bool) -> MemberState:
    """What is known of a member before anything is done; the process that takes it looks again, under its lock."""
    before = outcome.status_of(member.directory)
    if before == "done" or (before == "failed" and not retry_failed):
        reason = record.read(member.directory.record).reason
        return MemberState(member, before, reason=reason)
    return MemberState(member)


def _combine(planned: Plan, events: BatchEvents) -> tuple[str, ...]:
    """Put the metrics of each sweep together where that was not done since; what went wrong."""
    problems = []
    for sweep in planned.sweeps:
        try:
            late.combine_cells(RunDirectory(sweep.path), list(sweep.cells), Events(events.message))
        except PhinverseError as error:
            problems.append(f"{sweep.path}: the metrics of its members could not be put together: {error}")
    return tuple(problems)


class _Work:
    """Hands members to processes until all have ended, or until everything is asked to stop."""

    def __init__(self, order: Order, count: int, visible: tuple[str, ...]):
        self._order, self._count, self._visible = order, count, visible
        self._threads = max(1, batch_process.cores() // count)
        self._inbox: batch_process.Inbox = queue.SimpleQueue()
        self._slots: list[Process | None] = [None] * count
        self._gpu: list[int | None] = [None] * count
        self._at: dict[Process, MemberState] = {}
        self._stopping: float | None = None

    def run(self) -> None:
        """Return when every member has ended and all processes have been told to end."""
        order = self._order
        try:
            while self._at or (not order.stopping and order.waiting()):
                if order.stopping:
                    self._ask_to_stop()
                else:
                    self._hand_out()
                self._listen()
                order.events.tick()
            for process in filter(None, self._slots):
                process.dismiss()
        except BaseException:
            for process in filter(None, self._slots):
                process.kill()
            raise

    def wait(self) -> None:
        """Return when no process is left."""
        for process in filter(None, self._slots):
            process.wait()

    # --- to the processes -----------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        ready = self._order.ready()
        for slot in range(self._count):
            process = self._slots[slot]
            if ready and (process is None or process not in self._at):
                self._give(slot, ready.pop(0))

    def _give(self, slot: int, state: MemberState) -> None:
        wanted, device = batch_process.device(state.member.scenario.sections.run.device, self._visible)
        process = self._process(slot, wanted)
        self._at[process] = state
        process.give(self._order.task(state, device=device))
        self._order.begun(state)

    def _process(self, slot: int, gpu: int | None) -> Process:
        """The process of a slot, which sees the GPU that is asked for; in turn one of them if that does not matter."""
        process = self._slots[slot]
        if process is not None and gpu in (None, self._gpu[slot]):
            return process
        if process is not None:
            process.dismiss()
            process.wait()
        if self._visible:
            self._gpu[slot] = slot % len(self._visible) if gpu is None else gpu
        number = self._gpu[slot]
        name = None if number is None else self._visible[number]
        environment = batch_process.environment(self._threads, name, shared=self._count > len(self._visible))
        self._slots[slot] = process = Process(environment, self._inbox)
        return process

    def _ask_to_stop(self) -> None:
        """Ask again and again: a signal between two members, or while libraries load, goes by unheard."""
        now = time.monotonic()
        if self._stopping is None:
            self._stopping = now
            self._order.events.message(STOPPING)
        for process in list(self._at):
            if now - self._stopping > STOP_SECONDS:
                process.kill()
            else:
                process.stop()

    # --- from the processes ---------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Everything that has been reported, waiting a moment for the first of it."""
        timeout = TICK
        while True:
            try:
                process, report = self._inbox.get(timeout=timeout)
            except queue.Empty:
                return
            timeout = 0.0
            if report is None:
                self._ended(process)
            elif (state := self._at.get(process)) is not None:
                if report["event"] == "end":
                    del self._at[process]
                self._order.reported(state, report)

    def _ended(self, process: Process) -> None:
        """A process has gone: with its member, if it had one."""
        if process in self._slots:
            self._slots[self._slots.index(process)] = None
        state = self._at.pop(process, None)
        if state is not None:
            found = outcome.status_of(state.member.directory)
            if found == "done":
                self._order.ended(state, "done")
            elif self._order.stopping:
                self._order.ended(state, "interrupted" if found else "waiting", process.why())
            else:
                state.crashed = True
                where = f" at step {state.step}" if state.step else ""
                self._order.ended(state, "failed", f"{process.why()}{where}; {GO_ON}", process.last_words())
        process.wait()
