"""The picture of a comparison: losses and control errors against updates and against training time.

Runs that differ in their seeds alone are one line, the median, in a band from the smallest to the largest. Dotted
lines mark equal budgets where runs spent different ones; a run that failed ends in a cross.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, MaxNLocator, NullFormatter

from toolkit.core.errors import StorageError
from toolkit.runs import names, panels
from toolkit.runs.compare import Budgets, Group, Member, budgets, columns, groups_of, headings
from toolkit.runs.plots import save_figure

MAX_LINES = 21
STYLES = ("-", "--", "-.")
ALONG = {names.STEP: "updates", "wall_seconds": "training time, without compilation [s]"}
FEW = 60
"""Up to so many points, each has a marker."""
DECADE = 10.0
TITLES = {
    "validation_loss": "validation loss",
    "train_loss": "training loss",
    "control_error": "control error",
}


def write_comparison(members: Sequence[Member], path: Path) -> Path:
    """Draw the picture; StorageError where no run has recorded a loss."""
    return save_figure(comparison_figure(members), path)


def judged_by(members: Sequence[Member]) -> list[str]:
    """The validation loss, or else that of training, and the control error where it is known."""
    known = {name for name in TITLES for member in members if member.recorded(name)[0].size}
    loss = [name for name in ("validation_loss", "train_loss") if name in known][:1]
    return loss + [name for name in ("control_error",) if name in known]


def comparison_figure(members: Sequence[Member]) -> Figure:
    """One row per metric, one column per budget, one line per group of repetitions."""
    shown = judged_by(members)
    if not shown:
        raise StorageError("none of the runs has recorded a loss; there is nothing to draw")
    groups = [group for group in groups_of(members) if any(m.recorded(n)[0].size for m in group.members for n in shown)]
    figure = Figure(figsize=(9.6, 0.8 + 2.8 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(ALONG), squeeze=False, sharex="col", sharey="row")
    words = _words(groups, members)
    for row, name in zip(grid, shown, strict=True):
        for axes, along in zip(row, ALONG, strict=True):
            for number, group in enumerate(groups[:MAX_LINES]):
                _draw(axes, group, name, along, words[number], number)
        _scale(row[0], [m.recorded(name)[1] for group in groups for m in group.members])
        row[0].set_ylabel(TITLES[name], fontsize=panels.NORMAL, color=panels.INK)
    _finish(grid, budgets(members), members)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    rest = len(groups) - MAX_LINES
    heading = f"{rest} more are not shown" if rest > 0 else None
    # Beside the panels, where it hides nothing.
    figure.legend(handles, labels, loc="outside right upper", fontsize=panels.SMALL, frameon=False, title=heading)
    figure.supxlabel(_footnote(groups), fontsize=panels.SMALL, color=panels.INK)
    return figure


def _footnote(groups: Sequence[Group]) -> str:
    parts = ["dotted: what all runs have spent"]
    if any(sum(member.counts for member in group.members) > 1 for group in groups):
        parts.insert(0, "median and range over seeds")
    if any(not member.counts for group in groups for member in group.members):
        parts.append("×: failed")
    return " · ".join(parts)


def _words(groups: Sequence[Group], members: Sequence[Member]) -> list[str]:
    several = len({group.scenario for group in groups}) > 1
    short = headings(columns(members))
    found = []
    for group in groups:
        count = sum(member.counts for member in group.members)
        said = group.words(short, several) + (f" (n = {count})" if count > 1 else "")
        found.append(textwrap.fill(said, 34))
    return found


def _draw(axes: Axes, group: Group, name: str, along: str, label: str, number: int) -> None:
    """The median of a group with its range, and its failed runs one by one."""
    color = panels.COLORS[number % len(panels.COLORS)]
    style = STYLES[number // len(panels.COLORS) % len(STYLES)]
    curves = [member.recorded(name, along) for member in group.members if member.counts]
    curves = [(at, values) for at, values in curves if at.size]
    if curves:
        at, together = common_curves(curves)
        marker = "o" if at.size <= FEW else ""
        middle = np.median(together, axis=0)
        axes.plot(at, middle, style, color=color, label=label, linewidth=1.2, marker=marker, markersize=2.5)
        if len(curves) > 1:
            axes.fill_between(at, together.min(axis=0), together.max(axis=0), color=color, alpha=0.2, linewidth=0)
    for member in group.members:
        at, values = member.recorded(name, along)
        finite = np.isfinite(values)
        if not member.counts and finite.any():
            text = None if curves else label
            axes.plot(at[finite], values[finite], ":", color=color, linewidth=1.0, label=text)
            axes.plot(at[finite][-1], values[finite][-1], "x", color=color, markersize=5)
            # One name per line, however many of them failed.
            curves, label = curves or [(at, values)], label


def common_curves(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(positions, values by curve and position): every position that one of the curves has and all reach."""
    first, last = max(at[0] for at, _ in curves), min(at[-1] for at, _ in curves)
    positions = np.unique(np.concatenate([at for at, _ in curves]))
    positions = positions[(positions >= first) & (positions <= last)]
    return positions, np.stack([np.interp(positions, at, values) for at, values in curves])


def _scale(axes: Axes, recorded: Sequence[np.ndarray]) -> None:
    """Logarithmic where all values allow it."""
    values = np.concatenate(recorded)
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0:
        axes.set_yscale("log")
        wide = values.max() > DECADE * values.min()
        plain = FuncFormatter(lambda value, position: f"{value:g}")
        axes.yaxis.set_major_formatter(LogFormatterSciNotation() if wide else plain)
        axes.yaxis.set_minor_formatter(NullFormatter() if wide else plain)


def _finish(grid: np.ndarray, spent: Budgets, members: Sequence[Member]) -> None:
    limits = (spent.steps, spent.seconds)
    for row in grid:
        for axes, along, limit in zip(row, ALONG, limits, strict=True):
            reached = [
                member.recorded(along if along != names.STEP else "wall_seconds", along)[0] for member in members
            ]
            if limit is not None and any(at.size and at[-1] > 1.01 * limit for at in reached):
                axes.axvline(limit, color=panels.INK, linewidth=0.7, linestyle=":")
            axes.grid(which="major", linewidth=0.4, color="#cccccc")
            axes.set_axisbelow(True)
            panels.style(axes)
    for axes, (along, words) in zip(grid[-1], ALONG.items(), strict=True):
        axes.set_xlabel(words, fontsize=panels.NORMAL, color=panels.INK)
        whole = along == names.STEP
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=[1, 2, 2.5, 5, 10]))
