"""What the field files of a sweep's members have in common, found by comparing their headers one by one.

A variable is common if every member has it, along the same dimensions with the same coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from toolkit.runs import names


@dataclass(frozen=True)
class Shared:
    """A variable that all members have alike, without the axes."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attributes: Mapping[str, Any]
    """Those that are the same everywhere."""


class Common:
    """The variables that the members seen so far have alike."""

    def __init__(self, cell: str, raw: xr.Dataset):
        self._first = cell
        self.left_out: dict[str, str] = {}
        self.coordinates = {n: v.load() for n, v in _variables(raw) if _is_coordinate(n, v)}
        self.variables = {n: _shared(v) for n, v in _variables(raw) if not _is_coordinate(n, v)}
        self.names = {n for n, _ in _variables(raw)} | {str(dim) for dim in raw.dims}
        for name in [n for n, v in self.variables.items() if v.dtype.kind != "f"]:
            self._leave_out(name, "does not hold floating-point numbers")

    def compare(self, cell: str, raw: xr.Dataset) -> None:
        """Take one more member in."""
        found = dict(_variables(raw))
        changed = {dim: self._change(cell, dim, raw) for dim in map(str, raw.dims)}
        self.names |= {*found, *changed}
        for name in [n for n, v in found.items() if not _is_coordinate(n, v)]:
            if name not in self.variables and name not in self.left_out:
                self.left_out[name] = f"not in {self._first}"
        for name, ours in list(self.variables.items()):
            if name not in found:
                self._leave_out(name, f"not in {cell}")
                continue
            theirs = _shared(found[name])
            reasons = [changed[dim] for dim in theirs.dims if changed[dim]]
            if ours.dims != theirs.dims:
                dims = (" × ".join(v.dims) or "a number" for v in (ours, theirs))
                reasons = [f"{next(dims)} in {self._first}, {next(dims)} in {cell}"]
            if reasons:
                self._leave_out(name, reasons[0])
                continue
            same = {k: v for k, v in ours.attributes.items() if _equal(theirs.attributes.get(k), v)}
            self.variables[name] = Shared(ours.dims, ours.shape, np.result_type(ours.dtype, theirs.dtype), same)

    def _leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = reason
        del self.variables[name]

    def _change(self, cell: str, dim: str, raw: xr.Dataset) -> str:
        """How a dimension differs from that of the first member; empty if it does not."""
        for name in (dim, names.label_name(dim)):
            ours = self.coordinates.get(name)
            if ours is None or name not in raw.variables:
                continue
            theirs = raw.variables[name]
            if ours.shape != theirs.shape:
                return f"{dim} has {ours.size} values in {self._first}, {theirs.size} in {cell}"
            if not np.array_equal(ours.values, theirs.values):
                return f"{dim} has other values in {self._first} than in {cell}"
        return ""


def _variables(raw: xr.Dataset) -> Iterator[tuple[str, xr.Variable]]:
    return ((str(name), variable) for name, variable in raw.variables.items())


def _is_coordinate(name: str, variable: xr.Variable) -> bool:
    return variable.dims in ((name,), (name.removesuffix(names.LABEL),))


def _shared(variable: xr.Variable) -> Shared:
    about = {str(k): v for k, v in variable.attrs.items() if k not in ("_FillValue", "coordinates")}
    return Shared(tuple(map(str, variable.dims)), variable.shape, variable.dtype, about)


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a, b))


def listed(left_out: Mapping[str, str]) -> str:
    """Names by reason: `a, b (x has 8 values in …); c (not in …)`."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(together)} ({reason})" for reason, together in by_reason.items())
