"""Reads scenario files: YAML 1.2 numbers, plain data only, a position for every key and value.

PyYAML does the syntax; which text is a number is decided here by the core schema of YAML 1.2 (section
10.3.2): `1e-3` is a float, `0o17` an octal integer, `017` is 17, `yes`, `on` and dates are text. Refused,
with position: duplicate keys, tags other than the core ones (so no `!!python/object`), aliases that expand
to too much, deep nesting, several documents, files that are too long or not UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from toolkit.core.errors import ScenarioError
from toolkit.scenario.problems import KeyPath, Origin, Problem, raise_all

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_ALIASED_NODES = 10_000
MAX_DIGITS = 400

TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"null|Null|NULL|~|")


@dataclass(frozen=True)
class Node:
    """A value with its position: a scalar, a dict of nodes or a tuple of nodes."""

    value: Any
    origin: Origin
    key: Origin | None = None
    """Where its key stands; None for entries of lists and for the root."""

    def plain(self) -> Any:
        """The value as plain dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        return [child.plain() for child in self.value] if isinstance(self.value, tuple) else self.value

    def child(self, part: str | int) -> Node | None:
        """The entry of a mapping or list, None if there is none."""
        if isinstance(self.value, dict):
            return self.value.get(part)
        if isinstance(self.value, tuple) and isinstance(part, int) and 0 <= part < len(self.value):
            return self.value[part]
        return None

    def at(self, path: KeyPath) -> Node | None:
        """The node at a key path, None if nothing was written there."""
        node: Node | None = self
        for part in path:
            node = node.child(part) if node else None
        return node


def core_schema(resolver: Any) -> Any:
    """Class decorator: the implicit types of YAML 1.2 in place of PyYAML's YAML 1.1 ones."""
    resolver.yaml_implicit_resolvers = {}
    for name, pattern in (("null", _NULL), ("bool", _BOOLEAN), ("int", _INTEGER), ("float", _FLOAT)):
        # PyYAML matches at the beginning only.
        resolver.add_implicit_resolver(TAG + name, re.compile(f"(?:{pattern.pattern})$"), None)
    return resolver


@core_schema
class _Loader(yaml.SafeLoader):
    """PyYAML's scanner, parser and composer with a limit on depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@core_schema
class _Dumper(yaml.SafeDumper):
    """Quotes what our loader, not PyYAML's, would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Flow(list):
    """A list that is written on one line."""


_Dumper.add_representer(_Flow, lambda dumper, data: dumper.represent_sequence(TAG + "seq", data, flow_style=True))


def _scalar(kind: str, text: str) -> Any:
    """The value of a scalar of a core type; ValueError with a sentence if the text is not one."""
    patterns = {"null": _NULL, "bool": _BOOLEAN, "int": _INTEGER, "float": _FLOAT}
    if kind == "str":
        return text
    if not patterns[kind].fullmatch(text):
        raise ValueError(f"{text!r} is not of type {kind}")
    if len(text) > MAX_DIGITS:
        raise ValueError(f"number with more than {MAX_DIGITS} digits")
    if kind == "int":
        return int(text[2:], 8) if text.startswith("0o") else int(text, 16 if text.startswith("0x") else 10)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return None if kind == "null" else text.lower() == "true"


class _Builder:
    """Turns PyYAML nodes into ours and collects what must be refused."""

    def __init__(self, source: str, line_of: Callable[[Any], Origin]):
        self.source = source
        self.origin = line_of
        self.problems: list[Problem] = []
        self.seen: set[int] = set()
        self.open: set[int] = set()
        self.aliased = 0

    def build(self, node: Any, path: KeyPath, key: Origin | None = None, in_alias: bool = False) -> Node:
        origin = self.origin(node.start_mark)
        in_alias = in_alias or id(node) in self.seen
        self.aliased += in_alias
        if id(node) in self.open:
            raise ScenarioError(str(Problem(origin, path, "an alias must not contain itself")))
        if self.aliased > MAX_ALIASED_NODES:
            message = f"aliases expand to more than {MAX_ALIASED_NODES} values; write the values out or use fewer"
            raise ScenarioError(str(Problem(origin, path, message)))
        self.seen.add(id(node))
        self.open.add(id(node))
        value = self.value(node, path, origin, in_alias)
        self.open.discard(id(node))
        return Node(value, origin, key)

    def value(self, node: Any, path: KeyPath, origin: Origin, in_alias: bool) -> Any:
        kinds = {"MappingNode": ("map",), "SequenceNode": ("seq",)}
        allowed = kinds.get(type(node).__name__, ("str", "null", "bool", "int", "float"))
        kind = node.tag.removeprefix(TAG)
        if not node.tag.startswith(TAG) or kind not in allowed:
            tag = "!!" + kind if node.tag.startswith(TAG) else node.tag
            self.problems.append(Problem(origin, path, f"tag {tag!r} is not allowed; a scenario is plain data"))
            return None
        if kind == "map":
            return self.mapping(node, path, in_alias)
        if kind == "seq":
            return tuple(self.build(n, (*path, i), None, in_alias) for i, n in enumerate(node.value))
        try:
            return _scalar(kind, node.value)
        except ValueError as error:
            self.problems.append(Problem(origin, path, str(error)))
            return None

    def mapping(self, node: Any, path: KeyPath, in_alias: bool) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for key_node, value_node in node.value:
            at = self.origin(key_node.start_mark)
            name = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != TAG + "str":
                self.problems.append(Problem(at, path, f"a key must be text, put it in quotes: '{name}'"))
            elif name == "<<":
                self.problems.append(Problem(at, path, "merge keys are not YAML 1.2; use `extends`"))
            elif name in result:
                first = result[name].key
                message = f"duplicate key; the first one is in line {first.line if first else '?'}"
                self.problems.append(Problem(at, (*path, name), message))
            else:
                result[name] = self.build(value_node, (*path, name), at, in_alias)
        return result


def _compose(text: str, source: str, line_of: Callable[[Any], Origin]) -> Any:
    """PyYAML's node tree of a single document; its errors become ours."""
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"character {error.character!r} is not allowed in YAML"
        raise ScenarioError(str(Problem(Origin(source, line, column), (), message))) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"not YAML: {error.problem or error.context}"
        if "single document" in str(error.context):
            message = "several documents in one file; expected one scenario"
        raise ScenarioError(str(Problem(line_of(mark), (), message))) from error


def read_text(text: str, source: str) -> Node:
    """The root mapping of a scenario text; ScenarioError with all findings that concern the YAML itself."""

    def line_of(mark: Any) -> Origin:
        return Origin(source, mark.line + 1, mark.column + 1) if mark else Origin(source, 1, 1)

    tree = _compose(text, source, line_of)
    builder = _Builder(source, line_of)
    root = builder.build(tree, ()) if tree else Node(None, Origin(source, 1, 1))
    raise_all(builder.problems)
    if not isinstance(root.value, dict):
        message = "expected a mapping of keys such as `name:` and `pde:` at the top"
        raise ScenarioError(str(Problem(root.origin, (), message)))
    return root


def read_file(path: Path) -> Node:
    """The root mapping of a scenario file; ScenarioError if it cannot be read as one."""
    source = str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ScenarioError(f"{source}: cannot read the scenario: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise ScenarioError(f"{source}:1:1: longer than {MAX_BYTES} bytes; keep large data in a netCDF file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise ScenarioError(f"{source}:{line}:{column}: not UTF-8 text") from error
    return read_text(text, source)


def parse_value(text: str, origin: Origin) -> Node:
    """The value of an override, read by the same rules as a file; everything in it has this origin."""
    tree = _compose(text, origin.source, lambda mark: origin)
    builder = _Builder(origin.source, lambda mark: origin)
    node = builder.build(tree, ()) if tree else Node(None, origin)
    if builder.problems:
        raise ScenarioError(*(f"{origin.source}: {problem.message}" for problem in builder.problems))
    return Node(node.value, origin, origin)


def from_plain(value: Any, origin: Origin) -> Node:
    """A node tree from Python data, all with one origin; ScenarioError for anything but plain data."""
    if isinstance(value, Mapping):
        return Node({str(name): from_plain(child, origin) for name, child in value.items()}, origin, origin)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return Node(tuple(from_plain(child, origin) for child in value), origin, origin)
    if value is None or type(value) in (bool, int, float, str):
        return Node(value, origin, origin)
    raise ScenarioError(
        f"{origin.source}: expected plain data (numbers, text, lists, dicts), got {type(value).__name__}"
    )


def write_text(data: Mapping[str, Any]) -> str:
    """Plain data as YAML text that `read_text` reads back unchanged."""

    def compact(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: compact(child) for name, child in value.items()}
        if isinstance(value, (list, tuple)):
            nested = any(isinstance(child, (Mapping, list, tuple)) for child in value)
            return [compact(child) for child in value] if nested else _Flow(value)
        return value

    return yaml.dump(compact(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
