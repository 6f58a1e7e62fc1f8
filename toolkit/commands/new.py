"""`phinverse new`: a scenario from a template."""

from __future__ import annotations

import json
import re
from pathlib import Path

from toolkit.commands import console
from toolkit.commands.locate import scenario_path
from toolkit.core.errors import ScenarioError
from toolkit.runs.directory import check_name
from toolkit.scenario.load import load_scenario

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NAME_LINE = re.compile(r"^name:.*$", re.MULTILINE)


def new(name: str, template: str) -> int:
    """Exit code 0; an existing file is never overwritten."""
    target = Path(f"{check_name(name, 'NAME')}.yaml")
    source = scenario_path(template)
    scenario = load_scenario(source)
    text = source.read_text(encoding="utf-8")
    if re.search(r"^extends:", text, re.MULTILINE):
        # The parent is found beside the template only: its values are written out instead.
        text = scenario.to_yaml()
    # Quoted, for a name may look like a number.
    text = NAME_LINE.sub(f"name: {json.dumps(name)}", text, count=1)
    if not NAME.fullmatch(name):
        raise ScenarioError(f"NAME: {name!r} cannot name a scenario; use letters, digits and `_ . -`")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ScenarioError(f"{target} exists already; choose another name") from None
    console.result(str(target))
    console.hint(f"phinverse validate {target}")
    return 0
