"""Parameters as a named tree with a flat view.

A tree maps names such as `estimator/down0.conv1.weight` to native arrays. Its flat view is the concatenation of the
raveled arrays in alphabetical order of the names, which every optimizer and Jacobian shares: JAX returns dicts sorted,
so the order of construction would not survive a compiled step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from toolkit.core.backend import Backend

SEPARATOR = "/"


def flatten(tree: Mapping[str, Any], backend: Backend) -> Any:
    """All entries as one vector (P,)."""
    return backend.xp.concatenate([backend.xp.reshape(tree[name], (-1,)) for name in sorted(tree)], axis=0)


def unflatten(vector: Any, like: Mapping[str, Any], backend: Backend) -> dict[str, Any]:
    """The tree whose flat view is `vector`, with names and shapes of `like`."""
    result, start = {}, 0
    for name in sorted(like):
        size = count({name: like[name]})
        result[name] = backend.xp.reshape(vector[start : start + size], tuple(like[name].shape))
        start += size
    return {name: result[name] for name in like}


def count(tree: Mapping[str, Any]) -> int:
    """Number of scalars."""
    total = 0
    for value in tree.values():
        size = 1
        for extent in value.shape:
            size *= int(extent)
        total += size
    return total


def subtree(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries under `prefix/`, without it."""
    start = prefix + SEPARATOR
    return {name[len(start) :]: value for name, value in tree.items() if name.startswith(start)}


def prefixed(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The same entries under `prefix/`."""
    return {prefix + SEPARATOR + name: value for name, value in tree.items()}


def map_tree(function: Callable[[Any], Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The function applied to every entry."""
    return {name: function(value) for name, value in tree.items()}
