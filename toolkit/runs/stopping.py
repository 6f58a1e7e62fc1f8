"""Requests from outside to stop: Ctrl-C and SIGTERM set a flag that the loops look at after every step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from toolkit.core.errors import Interrupted

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 75


@dataclass
class StopRequest:
    """What was asked for, if anything."""

    exit_code: int | None = None

    def check(self, where: str) -> None:
        """Raise Interrupted if a stop was asked for; `where` says what has been saved."""
        if self.exit_code is not None:
            raise Interrupted(f"stopped; {where}", self.exit_code)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the two signals inside the block; a second Ctrl-C ends at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only; a run in another thread is stopped by its owner.
        yield request
        return

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGINT and request.exit_code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        request.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
