"""Looks up the `type:` of a section and dumps checked options as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from toolkit.core.errors import MissingError
from toolkit.core.registry import suggestion
from toolkit.scenario import kinds
from toolkit.scenario.problems import KeyPath, dotted
from toolkit.scenario.report import Report, listed


def choose(section: Any, path: KeyPath, names: Iterable[str], what: str, report: Report) -> str | None:
    """The `type` of a section if it is one of these names; otherwise None, and the report knows why."""
    known = sorted(names)
    if not isinstance(section, Mapping):
        report.add(
            path,
            f"expected `type:` and options, or the name of one {what} ({listed(known)}), got {section!r}",
        )
        return None
    if "type" not in section:
        report.add((*path, "type"), f"required key is missing; {what}s: {listed(known)}")
        return None
    name = section["type"]
    if not isinstance(name, str) or name not in known:
        report.add((*path, "type"), f"no {what} {name!r}{suggestion(str(name), known)}")
        return None
    return name


def load(kind: str, name: str, path: KeyPath, report: Report) -> Any:
    """A registered plugin; MissingError with the place that asks for it if it is broken."""
    try:
        return kinds.load(kind, name)
    except MissingError as error:
        origin = report.place((*path, "type"))
        raise MissingError(f"{origin}: {dotted(path)}.type: {error}") from error


def dump(*models: BaseModel | None) -> dict[str, Any]:
    """Checked options as plain data, every default included."""
    result: dict[str, Any] = {}
    for model in models:
        if model is not None:
            result.update(model.model_dump(mode="json"))
    return result
