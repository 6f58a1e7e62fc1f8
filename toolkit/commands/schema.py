"""`phinverse schema`: JSON Schema of scenario files."""

from __future__ import annotations

from toolkit.commands import console
from toolkit.scenario.json_schema import json_schema


def schema() -> int:
    """Exit code 0."""
    console.print_json(json_schema())
    console.hint("save it and begin a scenario with: # yaml-language-server: $schema=FILE")
    return 0
