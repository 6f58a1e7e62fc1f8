"""Numbers too large or too small to compute with: found before the run, told as a mistake of the scenario."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from toolkit.physics.layout import field_layout
from toolkit.scenario.problems import KeyPath
from toolkit.scenario.report import Report
from toolkit.scenario.sections import Sections

Answer = TypeVar("Answer")
MAX_COUNT = 2**31 - 1
"""What 32-bit indices can count."""
COPIES = 4
"""Of one state there have to be room for: before and after a step, and what is computed in between."""


def ask(question: Callable[[], Answer], what: str, path: KeyPath, report: Report) -> Answer | None:
    """What a plugin answers about the numbers of a scenario; None and a finding where they are too extreme."""
    try:
        # What is not finite is found where it is used.
        with np.errstate(all="ignore"):
            return question()
    except MemoryError:
        report.add(path, f"{what}: not enough memory; use fewer cells or smaller numbers", at_key=True)
    except (ArithmeticError, ValueError) as error:
        message = f"{what}: cannot be computed ({type(error).__name__}: {error})"
        report.add(path, f"{message}; use less extreme numbers", at_key=True)
    return None


def check_size(sections: Sections, report: Report) -> bool:
    """Whether counts can be counted with, and this machine holds the states of a single sample."""
    sound = [_countable(path, count, report) for path, count in _counts(sections).items()]
    size = sum(field_layout(spec, sections.grid).size for spec in sections.fields.values())
    needed, there = 8 * COPIES * min(size, 10**300), machine_memory()
    if needed > there:
        message = f"one sample has {needed / 8 / COPIES:.3g} values, computing with it takes {needed / 1e9:.3g} GB"
        report.add(("grid", "cells"), f"{message}, this machine has {there / 1e9:.3g} GB; use fewer cells")
    return all(sound) and needed <= there


def _counts(sections: Sections) -> dict[KeyPath, int | None]:
    data = sections.data
    return {
        ("time", "steps"): sections.time.steps,
        ("data", "train"): data.train if data else None,
        ("data", "validation"): data.validation if data else None,
        ("train", "batch_size"): sections.train.batch_size,
    }


def _countable(path: KeyPath, count: int | None, report: Report) -> bool:
    if count is not None and count > MAX_COUNT:
        report.add(path, f"expected at most {MAX_COUNT}, got {count}")
        return False
    return True


def machine_memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return np.inf
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
