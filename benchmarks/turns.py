"""Programs timed in turn within one process, so that a busy machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any


class Contender:
    """A program that makes one update per call; the first call, which may compile, is timed apart."""

    def __init__(self, step: Callable[[], Any]):
        start = time.perf_counter()
        step()
        self.first = time.perf_counter() - start
        self.step = step
        self.seconds: list[float] = []

    def run(self) -> None:
        """One update."""
        start = time.perf_counter()
        self.step()
        self.seconds.append(time.perf_counter() - start)


def take_turns(contenders: Iterable[Contender], repeats: int) -> None:
    """One update of each, again and again."""
    contenders = tuple(contenders)
    for _ in range(repeats):
        for contender in contenders:
            contender.run()
