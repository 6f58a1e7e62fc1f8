"""The fields of a run for its page, within a bounded number of bytes.

| lies along             | shown as                                                                     |
|------------------------|------------------------------------------------------------------------------|
| two axes of space      | pictures side by side with common colours, and of the error                  |
| three axes of space    | the same of the middle plane                                                 |
| one axis of space      | profiles over each other; beside them pictures over time                     |
| time or updates alone  | curves, one plot per component                                               |
| samples alone          | points, prediction against truth                                             |

Vectors in two axes are shown by their magnitude, complex numbers by their modulus; along a line and time by their
components and parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from toolkit.core.errors import StorageError
from toolkit.runs import names, panels
from toolkit.runs.report import frames
from toolkit.runs.report.content import Collector, Shown
from toolkit.runs.report.curves import course, courses, points, profiles
from toolkit.runs.report.images import images

MAX_BYTES = 3_600_000
"""Of all frames together; the page should be below 5 MB."""
MAX_FAMILIES = 12


@dataclass(frozen=True)
class Content:
    """What the page shows of fields."""

    shown: list[Shown]
    data: dict[str, Any]
    """For the page's script."""
    notes: list[str]


def content(fields: xr.Dataset) -> Content | None:
    """The fields of a run; None where there is nothing to draw, StorageError where they are too many for any page."""
    selection: frames.Selection | None = frames.select(fields)
    while selection is not None:
        found = _content(fields, selection)
        if len(json.dumps(found.data)) <= MAX_BYTES:
            return found if found.shown else None
        selection = selection.coarser()
    raise StorageError(f"pictures of {len(fields.data_vars)} fields do not fit a page; see the folder plots")


def _content(fields: xr.Dataset, selection: frames.Selection) -> Content:
    known = frames.families(fields)
    roles = {str(fields[n].attrs.get(names.ROLE, "")) for n in fields.data_vars}
    simulated = not roles & {"target", "control", "reference", "untrained"} and all(len(f) == 1 for f in known.values())
    collector = Collector(fields, selection, simulated)
    drawn = [_family(collector, base, family) for base, family in list(known.items())[:MAX_FAMILIES]]
    notes = _notes(fields, selection)
    if len(known) > MAX_FAMILIES:
        notes.append(f"{len(known) - MAX_FAMILIES} more fields are not shown")
    return Content([shown for shown in drawn if shown is not None], collector.data(), notes)


def _family(collector: Collector, base: str, family: Mapping[str, str]) -> Shown | None:
    """All of one field or control; None where it is empty or not made of numbers."""
    fields = collector.fields
    arrays, said = {}, []
    for role, name in family.items():
        if not frames.numeric(fields[name]) or fields[name].size == 0:
            return None
        arrays[role], said = frames.cut(frames.ordered(fields[name]), collector.selection.dim)
    main = frames.main(arrays)
    label = str(fields[base].attrs.get("long_name", base))
    units = panels.units(fields[base])
    shown = Shown(base, f"{label} [{units}]" if units else label, list(said))
    space = frames.space_of(main)
    along = course(main)
    if len(space) == 2:
        images(collector, shown, arrays, space)
    elif len(space) == 1:
        profiles(collector, shown, arrays, space[0])
    elif along is not None:
        courses(collector, shown, arrays, along)
    else:
        points(collector, shown, arrays)
    return shown


def _notes(fields: xr.Dataset, selection: frames.Selection) -> list[str]:
    """What of the file is not on the page."""
    notes = []
    if selection.dim is not None and fields.sizes[selection.dim] > len(selection.frames):
        notes.append(f"{len(selection.frames)} of {fields.sizes[selection.dim]} frames")
    if selection.samples is not None and fields.sizes[names.SAMPLE] > selection.samples:
        notes.append(f"the first {selection.samples} of {fields.sizes[names.SAMPLE]} samples")
    return notes
