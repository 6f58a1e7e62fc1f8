"""Collects findings about one scenario and places each at the right line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from toolkit.scenario.problems import KeyPath, Origin, Problem
from toolkit.scenario.references import References
from toolkit.scenario.yaml_loader import Node


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a near miss among known names, otherwise nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Names for a message, or `none`."""
    return ", ".join(sorted(names)) or "none"


@dataclass
class Report:
    """The findings so far about the scenario whose written values are `root`."""

    root: Node
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.references = References(self.root)

    def add(self, path: KeyPath, message: str, at_key: bool = False) -> None:
        """Note a finding at a key path; a path that was not written is placed at its nearest section."""
        self.problems.append(Problem(self.place(path, at_key), path, message))

    def place(self, path: KeyPath, at_key: bool = False) -> Origin:
        """Where a value (or its key) stands; for what was not written, where its section begins."""
        node = self.root
        for depth, part in enumerate(path):
            child = node.child(part)
            if child is None:
                return node.key or node.origin
            node = child
            if depth == len(path) - 1 and at_key:
                return node.key or node.origin
        return node.origin

    def written(self, path: KeyPath) -> bool:
        """Whether the scenario says something at this path."""
        return self.root.at(path) is not None
