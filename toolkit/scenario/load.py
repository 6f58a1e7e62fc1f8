"""Loads a scenario file: inheritance, overrides, checks; the one entrance from YAML to `Scenario`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.core.errors import ScenarioError
from toolkit.scenario.merge import key_path, merge, normalise, override, without
from toolkit.scenario.problems import KeyPath, Origin, Problem, raise_all
from toolkit.scenario.scenario import Scenario, compile_scenario
from toolkit.scenario.sweep import expand_written
from toolkit.scenario.yaml_loader import Node, from_plain, parse_value, read_file, read_text

MAX_PARENTS = 20
RESOLVED_NAME = "scenario.yaml"
"""Name of the copy in a run directory, which is not named after the scenario."""

Overrides = Mapping[str, Any] | Sequence[str]


def load_scenario(path: str | Path, overrides: Overrides = ()) -> Scenario:
    """The scenario of a file, checked as a whole; ScenarioError lists every finding.

    Overrides are `{"train.steps": 10}` or `["train.steps=10"]`; the latter's values are read as YAML.
    """
    path = Path(path)
    root = _with_parents(path, ())
    root = _with_overrides(root, overrides)
    return _compiled(root, path, _name_problems(root, path))


def scenario_from_text(text: str, overrides: Overrides = (), source: str = "<text>") -> Scenario:
    """The scenario of a YAML text; `extends` is relative to the working directory."""
    root = normalise(read_text(text, source))
    root = _with_overrides(_inherit(root, Path(), ()), overrides)
    return _compiled(root, None, [])


def _compiled(root: Node, path: Path | None, problems: list[Problem]) -> Scenario:
    swept = root.value.get("sweep") is not None and root.value["sweep"].value is not None
    scenario, report = compile_scenario(root, path, fit=not swept)
    problems = problems + report.problems
    if scenario is not None and swept:
        problems += expand_written(root, scenario)[1]
    raise_all(problems)
    assert scenario is not None
    return scenario


def _with_parents(path: Path, children: tuple[Path, ...]) -> Node:
    root = normalise(read_file(path))
    return _inherit(root, path.parent, (*children, path.resolve()))


def _inherit(root: Node, directory: Path, children: tuple[Path, ...]) -> Node:
    """`root` on top of the file it extends."""
    node = root.value.get("extends")
    if node is None or node.value is None:
        return without(root, "extends")
    if not isinstance(node.value, str):
        raise ScenarioError(str(Problem(node.origin, ("extends",), "expected the path of a scenario file")))
    parent = directory / node.value
    if parent.resolve() in children:
        chain = " -> ".join(child.name for child in (*children, parent))
        raise ScenarioError(
            str(Problem(node.origin, ("extends",), f"scenarios extend each other in a circle: {chain}"))
        )
    if len(children) > MAX_PARENTS:
        raise ScenarioError(str(Problem(node.origin, ("extends",), f"more than {MAX_PARENTS} generations")))
    if not parent.is_file():
        message = f"no such file: {parent}; the path is relative to the file that says it"
        raise ScenarioError(str(Problem(node.origin, ("extends",), message)))
    # A name belongs to one file; everything else is passed on.
    inherited = without(_with_parents(parent, children), "name")
    return without(merge(inherited, root), "extends")


def _with_overrides(root: Node, overrides: Overrides) -> Node:
    for key, node in _parsed(overrides):
        root = override(root, key, node)
    return root


def _parsed(overrides: Overrides) -> list[tuple[KeyPath, Node]]:
    if isinstance(overrides, Mapping):
        return [(key_path(key), from_plain(value, Origin(f"--set {key}={value}"))) for key, value in overrides.items()]
    if isinstance(overrides, str):
        raise ScenarioError(f"--set {overrides}: expected a list of overrides, got a text")
    result = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ScenarioError(f"--set {text}: expected key=value")
        result.append((key_path(key), parse_value(value, Origin(f"--set {text}"))))
    return result


def _name_problems(root: Node, path: Path) -> list[Problem]:
    """The name of a scenario is that of its file, so that one leads to the other."""
    name = root.value.get("name")
    exempt = path.suffix != ".yaml" or path.name == RESOLVED_NAME
    if exempt or name is None or not isinstance(name.value, str) or name.origin.source != str(path):
        return []
    if name.value == path.stem:
        return []
    message = f"expected {path.stem!r}, the name of the file, got {name.value!r}; rename one of them"
    return [Problem(name.origin, ("name",), message)]
