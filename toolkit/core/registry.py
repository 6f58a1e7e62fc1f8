"""Finds plugins through entry points, by name, without importing any before it is asked for.

Groups: `phinverse.pdes`, `phinverse.inverse_solvers`, `phinverse.update_rules`, `phinverse.networks`.
Two packages that register one name in one group are an error, not a race.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from toolkit.core.errors import MissingError

GROUPS = ("pdes", "inverse_solvers", "update_rules", "networks")


@cache
def available(group: str) -> dict[str, EntryPoint]:
    """Names registered in a group, sorted, mapped to their unloaded entry points."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=f"phinverse.{group}"), key=lambda p: p.name):
        # An editable install lists one distribution twice on some paths: only different targets clash.
        if point.name in found and found[point.name].value != point.value:
            raise MissingError(
                f"two packages register {point.name!r} under phinverse.{group}: "
                f"{found[point.name].value} and {point.value}; uninstall one of them"
            )
        found[point.name] = point
    return found


def refresh() -> None:
    """Forget what was found; for tests that install or fake plugins."""
    available.cache_clear()


def suggestion(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for a near miss among known names, otherwise the list of them."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known) or 'none'}"


def load(group: str, name: str, kind: type) -> Any:
    """The plugin object called `name`, checked to be of `kind`; MissingError says what is wrong with it."""
    points = available(group)
    if name not in points:
        raise MissingError(f"no plugin {name!r} in phinverse.{group}{suggestion(name, list(points))}")
    point = points[name]
    try:
        plugin = point.load()
    except Exception as error:
        raise MissingError(
            f"plugin {name!r} ({point.value}) failed to import: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(plugin, kind) or getattr(plugin, "name", None) != name:
        raise MissingError(f"plugin {name!r} ({point.value}) is not a {kind.__name__} of that name")
    return plugin
