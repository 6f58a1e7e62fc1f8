"""Expands the axes of a sweep into cells: scenarios without sweep, one per combination.

An axis is a dotted key with a list of values, or a name with labelled variants, each a map of overrides
(nested or dotted). Axes multiply, the last one varies fastest.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from toolkit.scenario.merge import key_path, override, without
from toolkit.scenario.problems import Origin, Problem, raise_all
from toolkit.scenario.report import Report
from toolkit.scenario.scenario import Scenario, compile_scenario
from toolkit.scenario.yaml_loader import Node

MAX_CELLS = 10_000

Point = tuple[tuple[str, Any, Node, Origin], ...]
"""One choice per axis: (axis, label, what it sets, where it stands)."""


@dataclass(frozen=True)
class Cell:
    """One combination of a sweep."""

    labels: dict[str, Any]
    """Axis -> value or label, in the order of the axes."""
    scenario: Scenario

    @property
    def cell_id(self) -> str:
        """Name of its directory: labels one can read, and a hash that makes it unique and stable."""
        short = short_names(self.labels)
        words = "-".join(f"{short[axis]}={_word(label)}" for axis, label in self.labels.items())
        slug = re.sub(r"[^A-Za-z0-9=_.+-]+", "_", words)[:60].strip("-._")
        return f"{slug or 'cell'}-{self.scenario.content_hash()[:8]}"


def short_names(axes: Iterable[str]) -> dict[str, str]:
    """The last word of each axis, or the whole key where two axes end in the same one."""
    last = {axis: axis.rpartition(".")[2] for axis in axes}
    words = list(last.values())
    return {axis: axis if words.count(word) > 1 else word for axis, word in last.items()}


def expand(scenario: Scenario) -> list[Cell]:
    """All cells, a single one without labels if there is no sweep; ScenarioError if one does not fit."""
    cells, problems = expand_written(scenario.written, scenario)
    raise_all(problems)
    return cells


def expand_written(root: Node, scenario: Scenario) -> tuple[list[Cell], list[Problem]]:
    """(cells, findings); findings that not all cells share say for which cell they hold."""
    sweep = root.value.get("sweep")
    if sweep is None or not sweep.value:
        return [Cell({}, scenario)], []
    count = math.prod(len(axis.value) for axis in sweep.value.values())
    if count > MAX_CELLS:
        message = f"the axes multiply to {count} cells, more than {MAX_CELLS}"
        return [], [Problem(sweep.key or sweep.origin, ("sweep",), message)]
    cells: list[Cell] = []
    found: dict[Problem, list[str]] = {}
    for point in _points(sweep):
        labels = {axis: label for axis, label, _, _ in point}
        compiled, report = _compile(root, point, scenario)
        for problem in report.problems:
            found.setdefault(problem, []).append(", ".join(f"{axis}={label}" for axis, label in labels.items()))
        if compiled is not None:
            cells.append(Cell(labels, compiled))
    return cells, [_named(problem, where, count) for problem, where in found.items()]


def _points(sweep: Node) -> Iterator[Point]:
    axes = []
    for axis, node in sweep.value.items():
        if isinstance(node.value, dict):
            axes.append([(axis, label, variant, variant.key or node.origin) for label, variant in node.value.items()])
        else:
            axes.append([(axis, _label(value.plain()), value, value.origin) for value in node.value])
    return itertools.product(*axes)


def _compile(root: Node, point: Point, scenario: Scenario) -> tuple[Scenario | None, Report]:
    cell = without(root, "sweep")
    for axis, _, node, origin in point:
        if isinstance(root.value["sweep"].value[axis].value, dict):
            for key, value in (node.value or {}).items():
                cell = override(cell, key_path(key), value)
        else:
            cell = override(cell, key_path(axis), Node(node.value, node.origin, origin))
    return compile_scenario(cell, scenario.path)


def _label(value: Any) -> Any:
    """Numbers and words label themselves, anything else is labelled by its JSON."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _word(label: Any) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _named(problem: Problem, cells: list[str], count: int) -> Problem:
    if len(cells) == count:
        return problem
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return replace(problem, message=f"{problem.message} (sweep cell {cells[0]}{more})")
