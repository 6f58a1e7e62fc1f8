"""How a batch is shown while it goes on: a live table on a terminal, plain lines otherwise."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from toolkit.commands import console
from toolkit.runs.batch_state import BatchEvents, MemberState

COLUMNS = ("member", "status", "step", "loss", "time", "left")
STYLES = {"running": "cyan", "done": "green", "failed": "red", "in use": "yellow", "interrupted": "yellow"}
ORDER = ("running", "failed", "in use", "interrupted", "waiting", "done")
"""What is shown first where the terminal is too small for all."""
MARGIN = 6
"""Lines of the terminal that the table leaves free: its own frame, and what stands below."""


@contextmanager
def view(quiet: bool) -> Iterator[BatchEvents]:
    """Events of a batch, drawn."""
    if quiet:
        yield BatchEvents()
    elif not sys.stderr.isatty():
        lines = _Lines()
        yield BatchEvents(lines.begin, lines.changed, console.say, lines.tick)
    else:
        shown = _Table(Console(stderr=True))
        with shown.live:
            yield BatchEvents(shown.begin, message=shown.message)


def loss(state: MemberState) -> str:
    """The newest loss, of the validation if there is one."""
    for name in ("validation_loss", "train_loss"):
        if name in state.metrics:
            return f"{state.metrics[name]:.4g}"
    return ""


def clock(seconds: float | None) -> str:
    """A duration as h:mm:ss or m:ss; empty where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def row(state: MemberState) -> tuple[str, ...]:
    """A member as cells of COLUMNS."""
    total = f"/{state.total}" if state.total else ""
    step = f"{state.step}{total}" if state.step else ""
    left = clock(state.remaining()) if state.status == "running" else ""
    worked = state.elapsed()
    return state.member.name, state.status, step, loss(state), clock(worked) if worked else "", left


def table(states: Sequence[MemberState], rows: int) -> Table:
    """At most so many members, those that say most first, and how many of each kind are left out."""
    drawn = Table(*COLUMNS, box=None, pad_edge=False)
    ranked = sorted(range(len(states)), key=lambda i: (ORDER.index(states[i].status), i))
    kept = sorted(ranked[: max(1, rows)])
    for i in kept:
        style = STYLES.get(states[i].status, "")
        # Text, because names may hold brackets, which are rich's markup.
        drawn.add_row(*(Text(cell, style=style if column == 1 else "") for column, cell in enumerate(row(states[i]))))
    if len(kept) < len(states):
        left = [states[i].status for i in ranked[max(1, rows) :]]
        counts = ", ".join(f"{left.count(word)} {word}" for word in ORDER if word in left)
        drawn.add_row(Text(f"… and {counts}"))
    return drawn


class _Table:
    def __init__(self, terminal: Console):
        self._states: Sequence[MemberState] = ()
        self._terminal = terminal
        self.live = Live(console=terminal, get_renderable=self._render, refresh_per_second=4)

    def begin(self, states: Sequence[MemberState], workers: int) -> None:
        self._states = states

    def message(self, text: str) -> None:
        self._terminal.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Table:
        return table(self._states, self._terminal.height - MARGIN)


class _Lines:
    def __init__(self) -> None:
        self._states: Sequence[MemberState] = ()
        self._told: dict[str, str] = {}
        self._last = time.monotonic()

    def begin(self, states: Sequence[MemberState], workers: int) -> None:
        """Say what there is to do."""
        self._states = states
        words = [state.status for state in states]
        known = ", ".join(f"{words.count(word)} {word}" for word in ("done", "failed") if word in words)
        processes = f"{workers} process{'' if workers == 1 else 'es'}"
        console.say(
            f"{len(states)} members" + (f", {processes}" if workers else "") + (f"; {known} before" if known else "")
        )

    def changed(self, state: MemberState) -> None:
        """Say it if a member's status is new."""
        name = state.member.name
        if self._told.get(name) == state.status:
            return
        self._told[name] = state.status
        details = [f"in {clock(state.elapsed())}", f"loss {loss(state)}" if loss(state) else ""]
        more = "  ".join(filter(None, details)) if state.status == "done" else ""
        reason = f": {state.reason.splitlines()[0]}" if state.reason else ""
        console.say(f"{name}: {state.status}{reason}{'  ' if more else ''}{more}")

    def tick(self) -> None:
        """Every few seconds: how far the members are that are at work."""
        now = time.monotonic()
        if now - self._last < console.LINE_SECONDS:
            return
        self._last = now
        done = sum(state.status == "done" for state in self._states)
        console.say(f"{done} of {len(self._states)} done")
        for state in self._states:
            if state.status == "running" and state.step:
                _, _, step, newest, worked, left = row(state)
                parts = [f"step {step}", f"loss {newest}" if newest else "", worked, f"{left} left" if left else ""]
                console.say(f"  {state.member.name}: {'  '.join(filter(None, parts))}")
