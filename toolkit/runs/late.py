"""What a run or a batch needs when it has ended, loaded then: matplotlib and xarray's writers take long to load.

The functions are those of the modules that they load, where they are described.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path

from toolkit.runs.directory import RunDirectory
from toolkit.runs.events import Events
from toolkit.scenario.sweep import Cell


def write_plots(path: Path) -> None:
    """`plots.write_plots`."""
    from toolkit.runs.plots import write_plots

    write_plots(path)


def write_sweep_plots(path: Path) -> None:
    """`sweep_plot.write_sweep_plot` and `sweep_curves.write_sweep_curves`."""
    from toolkit.runs.sweep_curves import write_sweep_curves
    from toolkit.runs.sweep_plot import write_sweep_plot

    write_sweep_plot(path)
    write_sweep_curves(path)


def combine_cells(directory: RunDirectory, cells: list[Cell], events: Events) -> None:
    """`execute.combine_cells` where the common files of a sweep are not newer than its members."""
    from toolkit.runs.execute import combine_cells
    from toolkit.runs.sweeps import up_to_date

    if not up_to_date(directory):
        combine_cells(directory, cells, events)


def load_for_combining() -> None:
    """Load now what `combine_cells` will load."""
    import xarray as xr

    importlib.import_module("toolkit.runs.execute")
    # In memory: with its first file, xarray loads a good part of Dask. If it cannot, it says so when it has to.
    with suppress(Exception):
        xr.Dataset({"nothing": 0}).to_netcdf(engine="netcdf4")
