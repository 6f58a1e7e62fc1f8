"""What the page of a run says: status, key figures, problem, curves, fields, scenario, environment, files."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import xarray as xr

from toolkit.core.errors import PhinverseError
from toolkit.runs import atomic, names
from toolkit.runs.directory import RunDirectory
from toolkit.runs.open import StoredRun
from toolkit.runs.record import RunRecord
from toolkit.runs.report.metric_plots import key_figures, learned, main_plots, more_plots
from toolkit.runs.report.texts import MAX_TEXT, REPORT, commands_of, environment, files, highlighted
from toolkit.runs.report.viewer import Content, content
from toolkit.runs.report.words import Row, in_words
from toolkit.scenario.load import load_scenario
from toolkit.scenario.yaml_loader import read_text

MAX_LINK = 300_000
"""Characters of a scenario that the page holds a second time, to be saved."""


def run_page(path: Path) -> dict[str, Any]:
    """The page's variables; what cannot be read is said in `problems`."""
    problems: list[str] = []
    directory = RunDirectory(path)
    with StoredRun(path) as stored:
        record = stored.record
        text = scenario_text(directory.scenario, problems)
        metrics = _metrics(stored, problems)
        shown = _fields(stored, problems)
    header = header_of(text, directory.scenario)
    rows = problem_rows(directory.scenario, problems)
    return {
        "kind": "run",
        "title": str(header.get("name") or record.scenario or path.name),
        "description": str(header.get("description") or ""),
        "references": [str(r) for r in header.get("references") or ()],
        "name": path.resolve().name,
        "place": str(path),
        "above": f"../{REPORT}" if (path.parent / REPORT).is_file() else None,
        "record": record,
        "times": _times(record),
        "figures": key_figures(path),
        "rows": rows,
        "plots": main_plots(metrics),
        "record_learns": learned(metrics),
        "more": more_plots(metrics),
        "content": shown,
        "yaml": highlighted(text),
        "yaml_cut": len(text) > MAX_TEXT,
        "download": download(text),
        "commands": commands_of(record),
        "changed": (record.git_commit or "").endswith("+changes"),
        "environment": environment(record),
        "files": files(path),
        "problems": problems,
    }


def download(text: str) -> str:
    """A scenario as a link that holds it; a very long one as a link to its file."""
    if len(text) > MAX_LINK:
        return "scenario.yaml"
    return "data:text/yaml;charset=utf-8;base64," + base64.b64encode(text.encode()).decode("ascii")


def scenario_text(scenario: Path, problems: list[str]) -> str:
    """The resolved scenario; empty where it cannot be read."""
    try:
        return atomic.read_text(scenario)
    except PhinverseError as error:
        problems.append(str(error))
        return ""


def _metrics(stored: StoredRun, problems: list[str]) -> xr.Dataset | None:
    directory = stored.directory
    if not directory.metrics.is_file() and not directory.metrics_lines.is_file():
        return None
    try:
        metrics = stored.metrics.load()
    except PhinverseError as error:
        problems.append(str(error))
        return None
    return metrics if metrics.sizes.get(names.STEP) else None


def _fields(stored: StoredRun, problems: list[str]) -> Content | None:
    if stored.directory.stored_fields is None:
        return None
    try:
        return content(stored.fields)
    except (PhinverseError, OSError, RuntimeError) as error:
        # The netCDF library reports a damaged file as RuntimeError; the rest of the page is worth having.
        problems.append(f"the fields cannot be read: {error}")
        return None


def header_of(text: str, scenario: Path) -> dict[str, Any]:
    """The sections of a scenario's text; none where it is not one."""
    try:
        found = read_text(text, str(scenario)).plain()
    except PhinverseError:
        return {}
    return found if isinstance(found, dict) else {}


def problem_rows(scenario: Path, problems: list[str]) -> list[Row]:
    """The scenario in words; none where it cannot be compiled here."""
    if not scenario.is_file():
        return []
    try:
        return in_words(load_scenario(scenario).sections)
    except PhinverseError as error:
        # A plugin or a file of samples may not be here; the scenario is shown as it is.
        problems.append(f"the scenario is shown without explanation: {error}")
        return []


def _times(record: RunRecord) -> list[tuple[str, str]]:
    found = [("started", _moment(record.started)), ("finished", _moment(record.finished or ""))]
    return [(word, text) for word, text in found if text]


def _moment(text: str) -> str:
    return text[:19].replace("T", " ") + " UTC" if text else ""
