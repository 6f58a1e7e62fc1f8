"""Where a value of a scenario comes from, and what is wrong with it.

A finding reads `file:line:column: key.path: message`; a value given on the command line has no line, its
finding reads `--set key.path: message`. Findings are collected and raised together, sorted by position.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.core.errors import ScenarioError

KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """A key path as users write it: `update.optimizer.type`, list entries by number."""
    return ".".join(str(part) for part in path)


@dataclass(frozen=True, order=True)
class Origin:
    """Where a key or value stands: in a file, or in an override (`line` 0)."""

    source: str
    """Path of the file as the user gave it, or the text of the override, as `--set run.seed=3`."""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One finding: where, at which key, and what was expected instead."""

    origin: Origin
    path: KeyPath
    message: str

    def __str__(self) -> str:
        key = dotted(self.path)
        if not self.origin.line:
            return f"--set {key}: {self.message}" if key else f"{self.origin.source}: {self.message}"
        place = f"{self.origin.source}:{self.origin.line}:{self.origin.column}"
        return f"{place}: {key}: {self.message}" if key else f"{place}: {self.message}"


def raise_all(problems: Iterable[Problem]) -> None:
    """Raise one ScenarioError with every finding once, sorted by position; nothing if there is none."""
    unique = dict.fromkeys(problems)
    if unique:
        ordered = sorted(unique, key=lambda problem: (problem.origin, dotted(problem.path)))
        raise ScenarioError(*(str(problem) for problem in ordered))
