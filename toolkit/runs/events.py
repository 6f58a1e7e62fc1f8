"""What a run tells while it goes: the command line draws it, a notebook may ignore it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


def _silent(*args: object) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Events:
    """Functions called as the run goes on."""

    message: Callable[[str], None] = _silent
    """A line of text."""
    progress: Callable[[int, int | None, Mapping[str, float]], None] = _silent
    """(steps done, steps in all or None, newest metrics)."""


SILENT = Events()
