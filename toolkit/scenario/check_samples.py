"""Whether the PDE can simulate samples, drawn or from a file: where they act, their shapes, their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from toolkit.scenario.layouts import control_layout, given_layout, places
from toolkit.scenario.report import Report, listed
from toolkit.scenario.sections import Sections
from toolkit.training.data import Arrays

PATH = ("data", "path")
BLOCK = 2**25
"""Bytes of a file that are looked at together."""


def check_place(sections: Sections, key: str, name: str, path: tuple[str, ...], report: Report) -> None:
    """Whether what samples give under a key, called `name` by their source, can act on this PDE."""
    role, _, target = key.partition(".")
    if role == "target" or target in places(sections, role):
        return
    message = f"{name} would act on {key}, which PDE {sections.pde.type!r} does not have"
    report.add(path, f"{message} ({role}: {listed(places(sections, role))}); remove it")


def check_drawn(sections: Sections, drawn: Arrays, what: str, report: Report) -> None:
    """Whether one drawn sample fits the scenario; its arrays are laid out (1, *cells, *components)."""
    before = len(report.problems)
    for key, values in drawn.items():
        check_place(sections, key, f"{key} of {what}", ("data", "type"), report)
        layout = given_layout(sections, key)
        if layout is not None and values.shape != (1, *layout.shape):
            message = f"{what} gives {key} in the shape {values.shape[1:]}, expected {layout.shape}"
            report.add(("data", "type"), message)
        if not np.isfinite(values).all():
            report.add(("data",), f"{what} gives values of {key} that are not finite; change its options", at_key=True)
    if len(report.problems) > before:
        return
    objection = _objection(sections, {key: values[0] for key, values in drawn.items()}, {})
    if objection:
        report.add(("data",), f"{what}: {objection}", at_key=True)


def check_start(sections: Sections, report: Report) -> None:
    """Whether the PDE can simulate the start values of controls, where nothing changes them."""
    for control in sections.controls.values() if sections.update is None else ():
        if control.initial is not None:
            values = np.broadcast_to(np.asarray(control.initial, float), control_layout(sections, control).shape)
            path = ("controls", control.name, "initial")
            objection = _objection(sections, {control.acts_on: values}, {control.acts_on: ""})
            if objection:
                report.add(path, objection)


def check_values(sections: Sections, variables: Mapping[str, Any], file: str, report: Report) -> None:
    """Whether all samples of a file are finite and accepted by the PDE; tells of the first one that is not."""
    names = {key: str(variable.name) for key, variable in variables.items()}
    for start, block in _blocks(sections, variables):
        for key, values in block.items():
            if not np.issubdtype(values.dtype, np.number):
                report.add(PATH, f"{file}: {names[key]} holds {values.dtype}, expected numbers")
                return
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if bad.any():
                sample = start + int(np.argmax(bad))
                report.add(PATH, f"{file}: {names[key]} holds values that are not finite or missing, sample {sample}")
                return
        for i in range(len(next(iter(block.values())))):
            objection = _objection(sections, {key: values[i] for key, values in block.items()}, names)
            if objection:
                report.add(PATH, f"{file}, sample {start + i}: {objection}")
                return


def _objection(sections: Sections, sample: Arrays, names: Mapping[str, str]) -> str | None:
    """What the PDE says against one sample, with the name that its source has for what is to blame."""
    with np.errstate(all="ignore"):
        said = sections.pde.plugin.check_sample(sections.grid, sections.pde.options, sample)
    key, colon, rest = (said or "").partition(": ")
    return f"{names[key]}: {rest}".removeprefix(": ") if colon and key in names else said


def _blocks(sections: Sections, variables: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(number of the first sample, arrays by key) of consecutive samples; bounded memory whatever the file."""
    count = min(_along_samples(variable) for variable in variables.values())
    size = sum(8 * int(np.prod(variable.shape)) for variable in variables.values()) // max(count, 1)
    together = max(1, BLOCK // max(size, 1))
    for start in range(0, count, together):
        part = slice(start, min(start + together, count))
        yield start, {key: read_block(variable, key, part) for key, variable in variables.items()}


def _along_samples(variable: Any) -> int:
    return int(variable.shape[variable.dimensions.index("sample")])


def read_block(variable: Any, key: str, samples: slice) -> np.ndarray:
    """Values laid out (sample, [t], *cells, [components]), missing ones as NaN."""
    first = 1 if key.startswith("target.") else 0  # a target along t has an empty first frame, at the start
    cut = {"sample": samples, "t": slice(first, None)}
    values: Any = np.ma.asarray(variable[tuple(cut.get(dim, slice(None)) for dim in variable.dimensions)])
    if np.issubdtype(values.dtype, np.number):
        values = values.astype(float).filled(np.nan)
    known = ["sample", "t", "x", "y", "z"]
    order = sorted(variable.dimensions, key=lambda dim: known.index(dim) if dim in known else len(known))
    return np.transpose(np.asarray(values), [variable.dimensions.index(dim) for dim in order])
