"""Joins what a scenario is made of: its parent files, the file itself, overrides and variants of a sweep.

Maps merge, lists replace, and a section that names another `type` replaces the whole section, so that SGD
does not inherit Adam's options. Only where an override or sweep axis sets the word alone (`update.type=dp`)
the keys that all kinds of the section share (its optimizer, a network's outputs) stay.
"""

from __future__ import annotations

from toolkit.core.errors import ScenarioError
from toolkit.scenario.problems import KeyPath, dotted
from toolkit.scenario.schema import DataOptions, LossOptions, NetworkOptions, UpdateOptions
from toolkit.scenario.yaml_loader import Node

SHARED: dict[tuple[str, ...], frozenset[str]] = {
    ("update",): frozenset({"optimizer", *UpdateOptions.model_fields}),
    ("networks", "*"): frozenset(NetworkOptions.model_fields),
    ("data",): frozenset(DataOptions.model_fields),
    ("loss",): frozenset(LossOptions.model_fields),
    ("loss", "#"): frozenset(LossOptions.model_fields),
}
"""Keys that all kinds of a section have in common, by section; `*` is any name, `#` any list entry."""

_WORDS = (("pde",), ("data",), ("networks", "*"), ("loss",), ("loss", "#"), ("update",))
TYPED = (*_WORDS, ("update", "optimizer"), ("update", "inverse_solver"), ("update", "network_rule"))
"""Sections in which a bare word stands for `{type: word}`."""


def _matches(path: KeyPath, pattern: tuple[str, ...]) -> bool:
    return len(path) == len(pattern) and all(
        p == part or p == ("#" if isinstance(part, int) else "*") for part, p in zip(path, pattern, strict=True)
    )


def normalise(node: Node, path: KeyPath = ()) -> Node:
    """The same scenario with every bare word that stands for a kind written as `{type: word}`."""
    if isinstance(node.value, str) and any(_matches(path, pattern) for pattern in TYPED):
        return Node({"type": Node(node.value, node.origin, node.key)}, node.origin, node.key)
    if isinstance(node.value, dict):
        children = {name: normalise(child, (*path, name)) for name, child in node.value.items()}
        return Node(children, node.origin, node.key)
    if isinstance(node.value, tuple):
        return Node(tuple(normalise(c, (*path, i)) for i, c in enumerate(node.value)), node.origin, node.key)
    return node


def merge(base: Node, over: Node) -> Node:
    """`base` with what `over` says on top; both normalised."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    kinds = [node.value["type"].value for node in (base, over) if "type" in node.value]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        return over
    children = dict(base.value)
    for name, child in over.value.items():
        children[name] = merge(children[name], child) if name in children else child
    # A section that an override only touches still begins where the file has it.
    place = over if over.origin.line else base
    return Node(children, place.origin, place.key)


def without(node: Node, *names: str) -> Node:
    """A mapping without some keys."""
    return Node({n: c for n, c in node.value.items() if n not in names}, node.origin, node.key)


def key_path(text: str) -> KeyPath:
    """Parts of a dotted key; ScenarioError if one is empty. Below `sweep` the rest is one axis."""
    parts = text.strip().split(".")
    if not all(parts):
        raise ScenarioError(f"--set {text}: expected a dotted key such as train.steps")
    return ("sweep", ".".join(parts[1:])) if parts[0] == "sweep" and len(parts) > 1 else tuple(parts)


def override(root: Node, path: KeyPath, value: Node) -> Node:
    """`root` with `value` set (maps: merged) at a key path; sections on the way are made where missing."""
    return normalise(_override(root, path, value, ()))


def _override(node: Node | None, path: KeyPath, value: Node, done: KeyPath) -> Node:
    if not path:
        value = normalise(value, done)
        return merge(node, value) if node else value
    part, rest = path[0], path[1:]
    if node is not None and isinstance(node.value, tuple):
        return _override_entry(node, path, value, done)
    if node is not None and node.value is not None and not isinstance(node.value, dict):
        where = dotted((*done, *path))
        raise ScenarioError(f"--set {where}: {dotted(done)} is {node.value!r}, it has no keys")
    children = dict(node.value) if node is not None and isinstance(node.value, dict) else {}
    if part == "type" and not rest and "type" in children and children["type"].value != value.value:
        kept = next((keys for pattern, keys in SHARED.items() if _matches(done, pattern)), frozenset())
        children = {name: child for name, child in children.items() if name in kept}
    children[str(part)] = _override(children.get(str(part)), rest, value, (*done, part))
    place = node if node is not None and node.value is not None else value
    return Node(children, place.origin, place.key)


def _override_entry(node: Node, path: KeyPath, value: Node, done: KeyPath) -> Node:
    part, entries = str(path[0]), list(node.value)
    if not part.isdecimal() or int(part) >= len(entries):
        where = dotted((*done, *path))
        raise ScenarioError(f"--set {where}: {dotted(done)} is a list with entries 0 to {len(entries) - 1}")
    index = int(part)
    entries[index] = _override(entries[index], path[1:], value, (*done, index))
    return Node(tuple(entries), node.origin, node.key)
