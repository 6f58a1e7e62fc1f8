"""How the members of a batch are getting on, and who is told: the same wherever they are computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.runs.batch_plan import Member
from toolkit.runs.stopping import StopRequest

TICK = 0.2
"""Seconds between two looks at the signals."""
STOP_SECONDS = 120.0
"""How long members may take to reach a checkpoint; a compilation cannot be interrupted."""
RETRY_SECONDS = 1.0
IN_USE_SECONDS = 15.0
"""How long a directory may be in use by another process once nothing else is left to do: time enough for what a batch
that was killed has left to notice it."""
STOPPING = "stopping; members that are running save a checkpoint first"


@dataclass
class MemberState:
    """How a member is getting on."""

    member: Member
    status: str = "waiting"
    """waiting, running, done, failed, interrupted, or in use by another process."""
    step: int = 0
    total: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """The newest value of each."""
    seconds: float = 0.0
    reason: str | None = None
    trace: str | None = None
    """Where a bug was met, or the last words of a process that died."""
    crashed: bool = False
    """Whether it took its process with it: its record does not say that it failed, so it goes on without `retry`."""
    began: float | None = None
    """When it was handed to a process, on the clock of `time.monotonic`."""
    first: tuple[float, int] | None = None
    """(time, step) of the first report of progress."""
    in_use_since: float | None = None
    """When its directory was first found in use by another process with nothing else going on."""
    not_before: float = 0.0

    def elapsed(self) -> float:
        """Seconds of work in this batch."""
        return self.seconds if self.began is None else time.monotonic() - self.began

    def remaining(self) -> float | None:
        """Estimated seconds to go, from the steps since the first report."""
        if self.first is None or self.total is None or self.step <= self.first[1]:
            return None
        return (self.total - self.step) * (time.monotonic() - self.first[0]) / (self.step - self.first[1])


@dataclass(frozen=True)
class BatchEvents:
    """Functions called as the batch goes on."""

    begin: Callable[[Sequence[MemberState], int], None] = lambda states, workers: None
    """All members, whose states go on changing, and the number of processes on this machine."""
    changed: Callable[[MemberState], None] = lambda state: None
    """The status or the progress of a member has changed."""
    message: Callable[[str], None] = lambda text: None
    """A line of text."""
    tick: Callable[[], None] = lambda: None
    """Called a few times per second."""


@dataclass
class Order:
    """What there is to do, and for whom: members are reported to it, it keeps their states."""

    states: Sequence[MemberState]
    retry_failed: bool
    events: BatchEvents
    stop: StopRequest
    command: tuple[str, ...]

    def __post_init__(self) -> None:
        self._told: set[str] = set()

    @property
    def stopping(self) -> bool:
        """Whether a signal has asked to stop."""
        return self.stop.exit_code is not None

    def waiting(self) -> list[MemberState]:
        """Members that are to be handed out, now or when their directory is tried again."""
        return [state for state in self.states if state.status == "waiting"]

    def ready(self) -> list[MemberState]:
        """Members that are to be handed out now."""
        now = time.monotonic()
        return [state for state in self.waiting() if state.not_before <= now]

    def task(self, state: MemberState, **more: Any) -> dict[str, Any]:
        """What a process has to be told about a member."""
        return {
            "path": str(state.member.path.resolve()),
            "scenario": state.member.scenario.to_yaml(),
            "command": self.command,
            "retry_failed": self.retry_failed,
            **more,
        }

    def begun(self, state: MemberState) -> None:
        """A member is at work."""
        state.status, state.began, state.first = "running", time.monotonic(), None
        self.events.changed(state)

    def reported(self, state: MemberState, report: Mapping[str, Any]) -> None:
        """A report of `batch_worker`."""
        if report["event"] == "message":
            # Versions, device and precision are those of all members as a rule: once is enough.
            if report["text"] not in self._told:
                self._told.add(report["text"])
                self.events.message(report["text"])
        elif report["event"] == "progress":
            state.step, state.total = report["step"], report["total"]
            state.metrics |= report["metrics"]
            state.first = state.first or (time.monotonic(), state.step)
            self.events.changed(state)
        else:
            self.ended(state, report["status"], report["reason"], report["trace"])

    def ended(self, state: MemberState, status: str, reason: str | None = None, trace: str | None = None) -> None:
        """A member has ended, or could not begin because its directory is in use."""
        state.seconds, state.began = state.elapsed(), None
        if status == "in use" and self._patient(state):
            state.status, state.not_before = "waiting", time.monotonic() + RETRY_SECONDS
            return
        state.status, state.reason, state.trace = status, reason, trace
        self.events.changed(state)

    def _patient(self, state: MemberState) -> bool:
        """Whether to try a directory in use once more: others are at work, or it may be what a killed batch left."""
        others = any(
            other.status == "running" and other.in_use_since is None for other in self.states if other is not state
        )
        now = time.monotonic()
        if others or state.in_use_since is None:
            state.in_use_since = now
        return now - state.in_use_since < IN_USE_SECONDS
