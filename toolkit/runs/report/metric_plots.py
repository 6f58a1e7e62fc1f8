"""What a run reached and what it took, as numbers and as curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toolkit.core.byte_size import size
from toolkit.runs import names
from toolkit.runs.compare import read_members
from toolkit.runs.compare_data import numbers
from toolkit.runs.report.plot import Curve, Plot, draw, number

MAIN = (
    (("train_loss", "validation_loss"), "loss"),
    (("control_error",), "control error"),
)
CLOCK = "wall_seconds"
JUDGED = {"train_loss", "validation_loss", "control_error"}
TIMES = {CLOCK, "step_seconds"}
MAX_MORE = 12


def key_figures(path: Path) -> list[tuple[str, str, str]]:
    """(what, number, remark) of what a run reached and what it took."""
    about = numbers(read_members([path], path.parent))["runs"][0]
    found = []
    for name, words in (("validation_loss", "validation loss"), ("train_loss", "training loss")):
        found += _judged(about[name], words)
    found += _judged(about["control_error"], "control error")
    if about["steps"] is not None:
        found.append(("steps", f"{about['steps']:,}".replace(",", " "), ""))
    for name, words in (
        ("step_seconds", "time per step"),
        ("wall_seconds", "training time"),
        ("compile_seconds", "compiling"),
    ):
        if about[name] is not None:
            found.append((words, f"{number(about[name], 3)} s", "median" if name == "step_seconds" else ""))
    if about["peak_memory_bytes"] is not None:
        found.append(("peak memory", size(about["peak_memory_bytes"]), "of the process"))
    return found


def _judged(found: dict[str, Any], words: str) -> list[tuple[str, str, str]]:
    if found["final"] is None:
        return []
    best = "" if found["best"] is None else f"best {number(found['best'], 3)} at step {found['best_step']}"
    return [(words, number(found["final"], 4), best)]


def main_plots(metrics: xr.Dataset | None) -> list[Plot]:
    """Losses and control errors against updates and against training time; of a simulation its monitors."""
    if metrics is None:
        return []
    found = []
    for block, title in MAIN:
        for along, x_label in ((names.STEP, "updates"), (CLOCK, "training time [s]")):
            curves = [_curve(metrics, name, along, k) for k, name in enumerate(block)]
            plot = draw(title, [c for c in curves if c is not None], x_label, title, whole=along == names.STEP)
            found += [] if plot is None else [plot]
    return found or _each(metrics, "time step")


def learned(metrics: xr.Dataset | None) -> bool:
    """Whether any loss was recorded."""
    return metrics is not None and any(_curve(metrics, name, names.STEP, 0) for name in JUDGED)


def more_plots(metrics: xr.Dataset | None) -> list[Plot]:
    """The other metrics of a training, one plot each."""
    return _each(metrics, "updates") if metrics is not None and learned(metrics) else []


def _each(metrics: xr.Dataset, x_label: str) -> list[Plot]:
    found = []
    for name in sorted(str(n) for n in metrics.data_vars if n not in JUDGED | TIMES)[:MAX_MORE]:
        curve = _curve(metrics, name, names.STEP, 0)
        units = str(metrics[name].attrs.get("units", "1"))
        title = str(metrics[name].attrs.get("long_name", name))
        plot = draw(title, [curve], x_label, "" if units == "1" else units, whole=True) if curve else None
        found += [] if plot is None else [plot]
    return found


def _curve(metrics: xr.Dataset, name: str, along: str, k: int) -> Curve | None:
    if name not in metrics or along not in metrics.variables:
        return None
    x, y = metrics[along].values.astype(float), metrics[name].values.astype(float)
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        return None
    return Curve(name.replace("_", " ").replace("train ", "training "), x[there], y[there], number=k)
