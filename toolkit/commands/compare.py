"""`phinverse compare`: runs side by side, as tables, a picture and JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toolkit.commands import console
from toolkit.core.byte_size import size
from toolkit.core.errors import PhinverseError
from toolkit.runs.compare import COUNTING, Member, common_folder, read_members, text
from toolkit.runs.compare_data import numbers
from toolkit.runs.compare_plot import write_comparison
from toolkit.runs.directory import SWEEP_FILE

Rows = list[tuple[str, ...]]
NONE = "–"
SHORT = {"train_loss": "train", "validation_loss": "validation", "control_error": "control error"}
FILE_NAME = "comparison.png"
TAKEN = {"run", "scenario", "status", "n", "steps", "seconds", "memory", *SHORT.values()}
"""Headings that a key of a scenario cannot have."""


def compare(directories: Sequence[str], out: Path, figure: Path | None, as_json: bool) -> int:
    """Exit code 0, also where runs have failed: they are listed with their reason."""
    members = read_members(directories, out)
    about = numbers(members)
    picture = _draw(members, figure or default_figure(members, out))
    if as_json:
        console.print_json({**about, "figure": None if picture is None else str(picture)})
    else:
        _show(run_rows(about), "runs")
        if any(group["n"] > 1 for group in about["groups"]):
            console.result("")
            _show(group_rows(about), "median (min to max) over seeds")
        for run in about["runs"]:
            if run["status"] != "done":
                console.result(f"{run['run']}: {run['status']}" + (f": {run['reason']}" if run["reason"] else ""))
    for warning in about["warnings"]:
        console.say(f"warning: {warning}")
    if picture is not None:
        console.say(f"picture: {picture}")
    console.hint(_next(about))
    return 0


def default_figure(members: Sequence[Member], out: Path) -> Path:
    """Beside the runs where these share a folder, otherwise in `out`."""
    folder = common_folder([member.path for member in members])
    if len(members) == 1:
        return folder.parent / FILE_NAME
    shared = (folder / SWEEP_FILE).is_file() or any(member.path.parent == folder for member in members)
    below = out.absolute() == folder or out.absolute() in folder.parents
    return (folder if shared or below else out) / FILE_NAME


def _draw(members: Sequence[Member], path: Path) -> Path | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_comparison(members, path)
    except (PhinverseError, OSError) as error:
        # The numbers are complete without a picture.
        console.say(f"no picture: {error}")
        return None


def _next(about: Mapping[str, Any]) -> str:
    """The picture of the run with the least loss."""
    done = [run for run in about["runs"] if run["status"] in COUNTING]
    for name in ("validation_loss", "train_loss"):
        known = [run for run in done if run[name]["final"] is not None]
        if known:
            return f"phinverse plot {min(known, key=lambda run: run[name]['final'])['path']}"
    return "phinverse list runs"


# --- tables -----------------------------------------------------------------------------------------------------------


def run_rows(about: Mapping[str, Any]) -> Rows:
    """One row per run below the headings; columns without any entry are left out."""
    several = len({run["scenario"] for run in about["runs"] if run["scenario"]}) > 1
    columns = {"run": [run["run"] for run in about["runs"]]}
    if several:
        columns["scenario"] = [run["scenario"] or NONE for run in about["runs"]]
    for key, heading in about["columns"].items():
        columns[key if heading in TAKEN else heading] = [text(run["settings"].get(key)) for run in about["runs"]]
    columns["status"] = [run["status"] for run in about["runs"]]
    for heading, pick in _judged(about):
        columns[heading] = [_number(pick(run)) for run in about["runs"]]
        if heading.startswith("best"):
            name = _metric(heading)
            steps = [run[name]["best_step"] for run in about["runs"]]
            columns[heading] = [
                cell if step is None else f"{cell} @ {step}" for cell, step in zip(columns[heading], steps, strict=True)
            ]
    columns["steps"] = [NONE if run["steps"] is None else str(run["steps"]) for run in about["runs"]]
    columns["seconds"] = [_number(run["wall_seconds"]) for run in about["runs"]]
    columns["s/step"] = [_number(run["step_seconds"]) for run in about["runs"]]
    peaks = [run["peak_memory_bytes"] for run in about["runs"]]
    columns["memory"] = [NONE if peak is None else size(peak) for peak in peaks]
    return _rows(columns, len(about["runs"]))


def group_rows(about: Mapping[str, Any]) -> Rows:
    """One row per group of repetitions below the headings."""
    groups = about["groups"]
    several = len({group["scenario"] for group in groups}) > 1
    columns: dict[str, list[str]] = {}
    if several or not any(group["settings"] for group in groups):
        columns["scenario"] = [group["scenario"] for group in groups]
    for key, heading in about["columns"].items():
        if any(key in group["settings"] for group in groups):
            columns[key if heading in TAKEN else heading] = [text(group["settings"].get(key)) for group in groups]
    columns["n"] = [str(group["n"]) for group in groups]
    for heading, pick in _judged(about):
        columns[heading] = [_spread(pick(group)) for group in groups]
    columns["s/step"] = [_spread(group["step_seconds"]) for group in groups]
    return _rows(columns, len(groups))


def _judged(about: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(heading, what it picks from a run or group): final, best and at equal budgets."""

    def picker(name: str, key: str) -> Any:
        return lambda entry: entry[name][key]

    found = [(SHORT["train_loss"], picker("train_loss", "final")), ("best train", picker("train_loss", "best"))]
    found += [(SHORT["validation_loss"], picker("validation_loss", "final"))]
    found += [("best validation", picker("validation_loss", "best"))]
    validated = any(run["validation_loss"]["final"] is not None for run in about["runs"])
    loss = "validation_loss" if validated else "train_loss"
    if about["equal_seconds"] is not None:
        found.append((f"at t = {about['equal_seconds']:.3g} s", picker(loss, "at_equal_seconds")))
    if about["equal_steps"] is not None:
        found.append((f"at step {about['equal_steps']}", picker(loss, "at_equal_steps")))
    return [*found, (SHORT["control_error"], picker("control_error", "final"))]


def _metric(heading: str) -> str:
    return next(name for name, short in SHORT.items() if heading.endswith(short))


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _spread(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return NONE
    middle = f"{value['median']:.3g}"
    return middle if value["n"] == 1 else f"{middle} ({value['min']:.3g} to {value['max']:.3g})"


def _rows(columns: Mapping[str, Sequence[str]], count: int) -> Rows:
    kept = {heading: cells for heading, cells in columns.items() if any(cell != NONE for cell in cells)}
    return [tuple(kept), *(tuple(cells[i] for cells in kept.values()) for i in range(count))]


def _show(rows: Rows, title: str) -> None:
    """On a terminal with lines and folded to its width, elsewhere as plain columns."""
    if not sys.stdout.isatty():
        console.result(console.table(rows))
        return
    shown = Table(title=title, title_justify="left")
    for heading, cells in zip(rows[0], zip(*rows[1:], strict=True), strict=True):
        numeric = all(cell == NONE or cell[:1].isdigit() or cell[:1] == "-" for cell in cells)
        shown.add_column(escape(heading), justify="right" if numeric else "left", overflow="fold")
    for row in rows[1:]:
        shown.add_row(*(escape(cell) for cell in row))
    Console().print(shown)
