"""Finds scenario files: a path as given, or a shipped scenario by its name."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from toolkit.core.errors import ScenarioError
from toolkit.core.registry import suggestion


def shipped_folder() -> Path:
    """Where the scenarios that come with phinverse are: beside the source, or installed under share/."""
    source = Path(__file__).resolve().parents[2] / "scenarios"
    return source if source.is_dir() else Path(sysconfig.get_path("data")) / "share" / "phinverse" / "scenarios"


def shipped() -> dict[str, Path]:
    """Shipped scenarios by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def scenario_path(text: str) -> Path:
    """The file that a user means; ScenarioError with a suggestion if there is none."""
    path = Path(text)
    if path.is_file():
        return path
    known = shipped()
    if text in known:
        return known[text]
    if path.is_dir():
        raise ScenarioError(f"{text}: expected a scenario file, this is a folder")
    raise ScenarioError(f"{text}: no such scenario file{suggestion(path.stem, list(known))}")
