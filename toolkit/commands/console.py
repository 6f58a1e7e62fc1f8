"""How commands talk: results to stdout, progress and messages to stderr, a bar on a terminal, lines otherwise."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from toolkit.runs.events import SILENT, Events

LINE_SECONDS = 5.0
"""At most one progress line in this time where there is no terminal."""
SHOWN = ("train_loss", "validation_loss", "control_error")


def say(text: str) -> None:
    """A message to the user."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def hint(text: str) -> None:
    """The next useful command, as the last line."""
    say(f"next: {text}")


def result(text: str) -> None:
    """A result, for people and for pipes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """A result as JSON; numbers that JSON lacks become text."""
    result(json.dumps(_plain(value), indent=2, ensure_ascii=False, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as aligned columns of plain text, which survives pipes and any width."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return "\n".join(lines)


def numbers(metrics: Mapping[str, float]) -> str:
    """The metrics that say most, short."""
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)


@contextmanager
def progress(quiet: bool) -> Iterator[Events]:
    """Events drawn as a bar with ETA on a terminal, as lines every few seconds elsewhere."""
    if quiet:
        yield SILENT
    elif not sys.stderr.isatty():
        yield Events(say, _Lines())
    else:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        newest = TextColumn("{task.description}", markup=False)
        bar = Progress(*columns, newest, console=Console(stderr=True), transient=True)

        def message(text: str) -> None:
            # As it is: a path may hold brackets, which are rich's markup, and must not be wrapped.
            bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        with bar:
            yield Events(message, _Bar(bar))


class _Lines:
    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, done: int, total: int | None, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if done == total or "validation_loss" in metrics or now - self._last >= LINE_SECONDS:
            self._last = now
            say(f"step {done}" + (f" of {total}" if total else "") + f"  {numbers(metrics)}")


class _Bar:
    def __init__(self, bar: Progress):
        self._bar, self._task = bar, None
        self._newest: dict[str, float] = {}

    def __call__(self, done: int, total: int | None, metrics: Mapping[str, float]) -> None:
        if self._task is None or done < self._bar.tasks[-1].completed:
            self._task = self._bar.add_task("", total=total)
            self._newest = {}
        self._newest |= metrics
        self._bar.update(self._task, completed=done, description=numbers(self._newest))
