"""Numbers of a scenario that the arithmetic of its keys names: `learning_rate: 1e-2/pde.xi**2`.

A reference is a dotted key of the same scenario, as it stands after inheritance, overrides and the values of a cell
of a sweep. There has to be a number, or arithmetic, which may refer to further keys; circles are refused, and the
length of a chain is bounded. Only what is written can be referred to: defaults are filled in later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from toolkit.scenario.expressions import Number, evaluate, refers
from toolkit.scenario.problems import KeyPath, Origin, dotted
from toolkit.scenario.yaml_loader import Node

MAX_CHAIN = 20
SWEEP = "sweep"
_NOTHING = Node(None, Origin(""))


class ReferenceProblem(ValueError):
    """What is wrong with a reference, in a sentence that needs no more words around it."""


@dataclass
class References:
    """The numbers of one scenario by dotted key."""

    root: Node
    _known: dict[str, Number] = field(default_factory=dict)
    """Each key is evaluated once, so that chains that branch take no longer than the scenario is large."""

    def evaluate(self, text: str) -> Number:
        """The value of arithmetic that may refer to keys; ValueError with a sentence if it has none."""
        return evaluate(text, lambda key: self._number(key, ()))

    def _number(self, key: str, chain: tuple[str, ...]) -> Number:
        if key in chain:
            raise ReferenceProblem(f"keys refer to each other in a circle: {' -> '.join((*chain, key))}")
        if len(chain) >= MAX_CHAIN:
            raise ReferenceProblem(f"more than {MAX_CHAIN} keys refer to each other: {' -> '.join(chain[:3])} -> …")
        if key not in self._known:
            self._known[key] = self._value(key, (*chain, key))
        return self._known[key]

    def _value(self, key: str, chain: tuple[str, ...]) -> Number:
        value = self._written(key, chain)
        if isinstance(value, str):
            try:
                return evaluate(value, lambda inner: self._number(inner, chain))
            except ReferenceProblem:
                raise
            except ValueError as error:
                raise ReferenceProblem(f"{key} is {value[:40]!r}: {error}") from error
        if isinstance(value, bool) or not isinstance(value, int | float):
            what = "a section" if isinstance(value, dict) else "a list" if isinstance(value, tuple) else repr(value)
            raise ReferenceProblem(f"{key} is {what}, not a number")
        return value

    def _written(self, key: str, chain: tuple[str, ...]) -> Any:
        node = self.root.at(tuple(key.split(".")))
        if node is not None:
            return node.value
        first = self._first_of_axis(key)
        if first is not None:
            return first.value
        by = f" (which {chain[-2]} refers to)" if len(chain) > 1 else ""
        close = get_close_matches(key, [dotted(leaf) for leaf in _numbers(self.root)], n=1)
        meant = f"did you mean {close[0]!r}? A" if close else "a"
        raise ReferenceProblem(
            f"nothing is written at {key}{by}; {meant} key that is left at its default has to be written to be "
            "referred to"
        )

    def _first_of_axis(self, key: str) -> Node | None:
        """The first value of an axis over a key: before a sweep is expanded, the key need not stand anywhere else."""
        axis = self.root.at((SWEEP, key))
        return axis.value[0] if axis is not None and isinstance(axis.value, tuple) and axis.value else None


def _numbers(node: Node, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Key paths that lead to a number or to arithmetic, those of a sweep left out."""
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            if (*path, name) != (SWEEP,):
                yield from _numbers(child, (*path, name))
    elif isinstance(node.value, str):
        with suppress(ValueError):
            evaluate(node.value, lambda key: 1.0)
            yield path
    elif isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield path


def keep_references(data: Any, root: Node) -> Any:
    """Resolved data in which numbers that were written as references are references again.

    A sweep is resolved before its cells choose their values: the numbers of its base must not stand for theirs.
    """
    if isinstance(data, dict) and isinstance(root.value, dict):
        return {name: keep_references(value, root.value.get(name, _NOTHING)) for name, value in data.items()}
    if isinstance(data, list) and isinstance(root.value, tuple) and len(data) == len(root.value):
        return [keep_references(value, node) for value, node in zip(data, root.value, strict=True)]
    written = root.value
    return written if isinstance(written, str) and isinstance(data, int | float) and refers(written) else data
