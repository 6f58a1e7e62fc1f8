"""The `grid` section: its cells, extent and sides as a `Grid`, if the PDE can run on it."""

from __future__ import annotations

from typing import Any

from toolkit.physics.grid import Grid
from toolkit.physics.plugin import PDEPlugin
from toolkit.scenario.report import Report, listed
from toolkit.scenario.schema import GridOptions


def sides(options: GridOptions) -> dict[str, str | float]:
    """The boundary of every side, `x-`, `x+`, …; a side that is not named is periodic."""
    result: dict[str, str | float] = {axis + end: "periodic" for axis in sorted(options.cells) for end in "-+"}
    if not isinstance(options.boundary, dict):
        return dict.fromkeys(result, options.boundary)
    for key, value in sorted(options.boundary.items(), key=lambda item: len(item[0])):
        # Shorter keys first: `x` sets both sides, `x-` then one of them.
        result.update(dict.fromkeys([key] if len(key) == 2 else [key + "-", key + "+"], value))
    return result


def build_grid(options: GridOptions, report: Report) -> Grid | None:
    """The grid, or None and a finding if an axis is periodic on one side only."""
    cells = {str(axis): n for axis, n in sorted(options.cells.items())}
    extent = {str(axis): size for axis, size in (options.extent or {}).items()}
    extent = extent or {axis: float(n) for axis, n in cells.items()}
    boundary = sides(options)
    for axis in cells:
        if (boundary[axis + "-"] == "periodic") != (boundary[axis + "+"] == "periodic"):
            report.add(
                ("grid", "boundary"),
                f"axis {axis}: periodic on one side only ({axis}-: {boundary[axis + '-']}, {axis}+: "
                f"{boundary[axis + '+']}); make both sides periodic or none",
            )
            return None
    return Grid(cells, {axis: extent[axis] for axis in cells}, boundary)


def dump_grid(options: GridOptions, grid: Grid) -> dict[str, Any]:
    """The resolved section; the boundary stays in the form in which it was written."""
    return {"cells": dict(grid.cells), "extent": dict(grid.extent), "boundary": options.boundary}


def fits(plugin: PDEPlugin, grid: Grid | None, report: Report) -> bool:
    """Whether the PDE runs on this grid (or without one); findings say why not."""
    if grid is None:
        if plugin.dimensions:
            report.add(("grid",), f"PDE {plugin.name!r} needs a grid in {_dimensions(plugin)} dimensions")
        return not plugin.dimensions
    if not plugin.dimensions:
        report.add(("grid",), f"PDE {plugin.name!r} is an ODE and takes no grid; remove this section", at_key=True)
        return False
    if len(grid.axes) not in plugin.dimensions:
        message = f"PDE {plugin.name!r} runs in {_dimensions(plugin)} dimensions, the grid has {len(grid.axes)}"
        report.add(("grid", "cells"), message)
        return False
    refused = grid.boundary_words() - plugin.boundaries
    if refused:
        message = f"PDE {plugin.name!r} takes the boundaries {listed(plugin.boundaries)}, not {listed(refused)}"
        report.add(("grid", "boundary"), message)
    return not refused


def _dimensions(plugin: PDEPlugin) -> str:
    return " or ".join(str(n) for n in plugin.dimensions)
