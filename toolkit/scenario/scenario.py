"""A checked scenario: typed sections, the resolved plain data, and where every value comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.scenario.checks import check
from toolkit.scenario.problems import KeyPath, dotted
from toolkit.scenario.references import keep_references
from toolkit.scenario.report import Report
from toolkit.scenario.resolve import resolve
from toolkit.scenario.sections import Sections
from toolkit.scenario.yaml_loader import Node, write_text

DEFAULT = "default"


@dataclass(frozen=True)
class Scenario:
    """One scenario that can run (or, with `sweep`, be expanded into cells that can)."""

    sections: Sections
    """What it says, typed."""
    data: Mapping[str, Any]
    """What it says, plain: every default filled in, arithmetic evaluated, nothing inherited any more."""
    path: Path | None
    written: Node = field(repr=False, compare=False)
    """What was written, with positions, after inheritance and overrides."""

    @property
    def name(self) -> str:
        """Name of the scenario."""
        return self.sections.header.name

    @property
    def origins(self) -> dict[str, str]:
        """`file:line`, `--set key=value` or `default` by dotted key, for every value."""
        return {dotted(path): _origin(self.written, path) for path, _ in leaves(self.data)}

    def content_hash(self) -> str:
        """SHA-256 of the resolved scenario as canonical JSON, hexadecimal; the same in every process."""
        text = json.dumps(self.data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved scenario as YAML that runs as it is, keys in the order of the documentation."""
        return write_text(self.data)


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Values that are neither mappings nor lists of them, with their key paths."""
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from leaves(child, (*path, name))
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        for i, entry in enumerate(value):
            yield from leaves(entry, (*path, i))
    else:
        yield path, value


def _origin(root: Node, path: KeyPath) -> str:
    node = root.at(path)
    return DEFAULT if node is None else str(node.origin)


def compile_scenario(root: Node, path: Path | None, fit: bool = True) -> tuple[Scenario | None, Report]:
    """(scenario, findings) of written data; no scenario if there are findings.

    With `fit` False only the keys are checked, not how the sections fit together: with a sweep they need to
    do so in its cells only.
    """
    report = Report(root)
    sections, data = resolve(report)
    if sections is not None and fit:
        check(sections, report)
    if sections is None or report.problems:
        return None, report
    if sections.sweep:
        data = keep_references(data, root)
    return Scenario(sections, data, path, root), report
