"""What the page of a sweep says: axes, members with their numbers and reasons, repetitions, curves, pictures."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.byte_size import size
from toolkit.runs import atomic, names
from toolkit.runs.compare import Member, is_seed, read_members, text
from toolkit.runs.compare_data import JUDGES, numbers
from toolkit.runs.compare_plot import common_curves, judged_by
from toolkit.runs.directory import RunDirectory
from toolkit.runs.report.plot import Curve, Plot, draw, number
from toolkit.runs.report.run_page import download, header_of, problem_rows, scenario_text
from toolkit.runs.report.texts import MAX_TEXT, REPORT, files, highlighted
from toolkit.scenario.sweep import short_names

MAX_LINES = 14
"""Curves of one plot at most, two dashes of every colour."""
MAX_PICTURE = 600_000
MAX_REASON = 2_000
MAX_REASONS = 100
ALONG = {names.STEP: "updates", "wall_seconds": "training time [s]"}
WORDS = {"train_loss": "training loss", "validation_loss": "validation loss", "control_error": "control error"}
PICTURES = {
    "sweep.png": "Where the members ended, along the axes of the sweep",
    "sweep_curves.png": "How they learned: a colour per label of one axis, dashes for another",
}


def sweep_page(path: Path) -> dict[str, Any]:
    """The page's variables."""
    problems: list[str] = []
    directory = RunDirectory(path)
    members = read_members([path], path.parent)
    about = numbers(members)
    labels = _labels(directory, members)
    groups = _repetitions(about, members, labels)
    yaml = scenario_text(directory.scenario, problems)
    header = header_of(yaml, directory.scenario)
    return {
        "kind": "sweep",
        "title": str(header.get("name") or path.resolve().parent.name),
        "description": str(header.get("description") or ""),
        "references": [str(r) for r in header.get("references") or ()],
        "name": path.resolve().name,
        "place": str(path),
        "counts": Counter(member.status for member in members).most_common(),
        "axes": _axes(labels),
        "members": _member_table(about, members, labels),
        "groups": _group_table(groups, labels),
        "failures": [(m.path.name, m.status, m.reason[:MAX_REASON]) for m in members if m.reason][:MAX_REASONS],
        "warnings": about["warnings"],
        "budgets": _budgets(about),
        "plots": _group_plots(groups, members),
        "hidden": max(0, len(groups) - MAX_LINES),
        "by_axis": _axis_plots(members, labels),
        "pictures": _pictures(directory.plots),
        "rows": problem_rows(directory.scenario, problems),
        "yaml": highlighted(yaml),
        "yaml_cut": len(yaml) > MAX_TEXT,
        "download": download(yaml),
        "commands": ["phinverse run scenario.yaml", f"phinverse compare {path}"],
        "files": files(path, tuple(m.path.name for m in members)),
        "problems": problems,
    }


def _labels(directory: RunDirectory, members: Sequence[Member]) -> dict[str, dict[str, Any]]:
    """Labels by axis, by the name of the member's folder."""
    # That they are listed is known from reading the members.
    cells = atomic.read_json(directory.sweep)["cells"]
    return {m.path.name: cells.get(m.path.name, {}) for m in members}


def _axes(labels: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The labels of every axis, by its key."""
    found: dict[str, dict[str, None]] = {}
    for own in labels.values():
        for key, label in own.items():
            found.setdefault(key, {})[text(label)] = None
    return {key: list(values) for key, values in found.items()}


@dataclass(frozen=True)
class Repetitions:
    """Members that differ in their seeds alone."""

    words: str
    labels: list[Any]
    """Along the axes that are no seeds."""
    members: list[Member]
    numbers: Mapping[str, Any]
    """Median and range of what they reached."""


def _repetitions(
    about: Mapping[str, Any], members: Sequence[Member], labels: Mapping[str, Mapping[str, Any]]
) -> list[Repetitions]:
    by_label = {member.label: member for member in members}
    short = _short(labels)
    found = []
    for group in about["groups"]:
        same = [by_label[label] for label in group["runs"]]
        own = {key: label for key, label in labels[same[0].path.name].items() if not is_seed(key)}
        words = ", ".join(f"{short[key]} = {text(label)}" for key, label in own.items())
        found.append(Repetitions(words or same[0].scenario, list(own.values()), same, group))
    return found


def _short(labels: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return short_names(_axes(labels))


# --- tables -----------------------------------------------------------------------------------------------------------


def _judges(entries: Sequence[Mapping[str, Any]], pick: Callable[[Mapping[str, Any], str], Any]) -> list[str]:
    """The loss of validation, or else of training, and the control error, where any has them."""
    known = [name for name in JUDGES if any(pick(entry, name) is not None for entry in entries)]
    losses = [name for name in ("validation_loss", "train_loss") if name in known][:1]
    return losses + [name for name in ("control_error",) if name in known]


def _member_table(
    about: dict[str, Any], members: Sequence[Member], labels: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Headings (text, whether numbers stand below) and rows of cells (text, number to sort by or None); columns without
    any entry are left out."""
    runs = about["runs"]
    judged = _judges(runs, lambda run, name: run[name]["final"])
    columns = {
        short: [_setting(labels[m.path.name].get(key)) for m in members] for key, short in _short(labels).items()
    }
    columns["status"] = [(run["status"], None) for run in runs]
    columns |= {WORDS[name]: [_numeric(run[name]["final"]) for run in runs] for name in judged}
    columns |= {f"best {WORDS[name]}": [_numeric(run[name]["best"]) for run in runs] for name in judged[:1]}
    columns["steps"] = [_numeric(run["steps"], 7) for run in runs]
    columns["seconds"] = [_numeric(run["wall_seconds"], 3) for run in runs]
    columns["memory"] = [_bytes(run["peak_memory_bytes"]) for run in runs]
    columns = {head: cells for head, cells in columns.items() if any(cell[0] != "–" for cell in cells)}
    rows = [
        {
            "name": member.path.name,
            "link": f"{member.path.name}/{REPORT}" if (member.path / REPORT).is_file() else None,
            "status": member.status,
            "cells": [cells[k] for cells in columns.values()],
        }
        for k, member in enumerate(members)
    ]
    head = [(word, any(value is not None for _, value in cells)) for word, cells in columns.items()]
    return {"head": head, "status": list(columns).index("status"), "rows": rows}


def _setting(value: Any) -> tuple[str, float | None]:
    return text(value), float(value) if isinstance(value, int | float) else None


def _numeric(value: float | None, digits: int = 4) -> tuple[str, float | None]:
    return number(value, digits), value


def _bytes(value: int | None) -> tuple[str, float | None]:
    return ("–" if value is None else size(value)), value


def _group_table(groups: Sequence[Repetitions], labels: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Median and range over seeds, where there are any."""
    numbers = [group.numbers for group in groups]
    if not any(found["n"] > 1 for found in numbers):
        return None
    judged = _judges(numbers, lambda found, name: found[name]["final"])
    head = [short for key, short in _short(labels).items() if not is_seed(key)]
    head += ["runs", *(WORDS[n] for n in judged), *(f"best {WORDS[n]}" for n in judged[:1]), "s/step"]
    rows = []
    for group, found in zip(groups, numbers, strict=True):
        cells = [_setting(label) for label in group.labels]
        cells += [(f"{found['n']} of {len(group.members)}", float(found["n"]))]
        cells += [_spread(found[name]["final"]) for name in judged]
        cells += [_spread(found[name]["best"]) for name in judged[:1]]
        rows.append([*cells, _spread(found["step_seconds"])])
    return {"head": [(word, any(row[k][1] is not None for row in rows)) for k, word in enumerate(head)], "rows": rows}


def _spread(value: dict[str, Any] | None) -> tuple[str, float | None]:
    if value is None:
        return "–", None
    middle = number(value["median"], 3)
    if value["n"] == 1:
        return middle, value["median"]
    return f"{middle} ({number(value['min'], 3)} to {number(value['max'], 3)})", value["median"]


def _budgets(about: dict[str, Any]) -> str:
    """What all members have spent at least."""
    parts = []
    if about["equal_steps"] is not None:
        parts.append(f"{about['equal_steps']} updates")
    if about["equal_seconds"] is not None:
        parts.append(f"{number(about['equal_seconds'], 3)} s of training")
    return " and ".join(parts)


# --- curves -----------------------------------------------------------------------------------------------------------


def _group_plots(groups: Sequence[Repetitions], members: Sequence[Member]) -> list[Plot]:
    """Each metric that judges, against updates and training time: a line per group of repetitions."""
    named = [(group.words, group.members) for group in groups if any(m.counts for m in group.members)]
    found = []
    for name in judged_by(members):
        for along, x_label in ALONG.items():
            found += _plot(WORDS[name], named, name, along, x_label)
    return found


def _axis_plots(members: Sequence[Member], labels: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Plot]]:
    """For each of several axes: a line per label over all members that have it."""
    axes = {key: values for key, values in _axes(labels).items() if len(values) > 1 and not is_seed(key)}
    found = []
    for key, values in axes.items() if len(axes) > 1 else ():
        named = [(v, [m for m in members if text(labels[m.path.name].get(key)) == v]) for v in values]
        for name in judged_by(members)[:1]:
            found += [(key, plot) for plot in _plot(WORDS[name], named, name, names.STEP, "updates")]
    return found


def _plot(title: str, named: Sequence[tuple[str, Sequence[Member]]], name: str, along: str, x_label: str) -> list[Plot]:
    curves = [
        curve for k, (words, same) in enumerate(named[:MAX_LINES]) for curve in _curve(words, same, name, along, k)
    ]
    plot = draw(title, curves, x_label, title, whole=along == names.STEP)
    return [] if plot is None else [plot]


def _curve(words: str, members: Sequence[Member], name: str, along: str, k: int) -> list[Curve]:
    """The median of members with the range between the smallest and the largest."""
    recorded = [m.recorded(name, along) for m in members if m.counts]
    recorded = [(at, values) for at, values in recorded if at.size]
    if not recorded:
        return []
    at, together = common_curves(recorded)
    if not at.size:
        return []
    label = words + (f" (n = {len(recorded)})" if len(recorded) > 1 else "")
    low, high = (together.min(axis=0), together.max(axis=0)) if len(recorded) > 1 else (None, None)
    return [Curve(label, at, np.median(together, axis=0), low, high, k)]


def _pictures(folder: Path) -> list[tuple[str, str, str]]:
    """(title, file name, data URI) of the pictures that were drawn of the sweep."""
    found = []
    for name, title in PICTURES.items():
        path = folder / name
        if path.is_file() and path.stat().st_size <= MAX_PICTURE:
            found.append((title, name, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")))
    return found
