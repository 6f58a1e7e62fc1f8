"""The output of a prediction: a field file that grows along `sample`, a block of samples at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import netCDF4
import numpy as np

from toolkit.physics.grid import Grid
from toolkit.runs import names
from toolkit.runs.datasets import clean_attributes
from toolkit.runs.fields import close_written, real_arrays, reported
from toolkit.runs.layout import Coordinate, Variable, define_coordinates, define_variable

CACHE = 2**20
"""Bytes."""


class SampleWriter:
    """Writes blocks of samples one after the other; memory does not grow with their number.

    `block` samples are written at a time and lie together on the disk; every variable has `sample` first.
    """

    def __init__(
        self,
        path: Path,
        variables: Sequence[Variable],
        coordinates: Sequence[Coordinate],
        attributes: Mapping[str, Any],
        grid: Grid | None,
        block: int,
    ):
        self._path, self._closed = path, False
        self.samples = 0
        """Number of samples written."""
        with reported("write", path):
            self._dataset = netCDF4.Dataset(path, "w", format="NETCDF4")
            self._dataset.set_auto_mask(False)
            self._dataset.setncatts(clean_attributes(attributes))
            define_coordinates(self._dataset, coordinates, names.SAMPLE)
            for variable in variables:
                define_variable(self._dataset, variable, names.SAMPLE, grid, together=block)
            for created in self._dataset.variables.values():
                # Every chunk is written once and as a whole: keeping the last ones only takes memory.
                created.set_var_chunk_cache(size=CACHE)

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the next samples of every variable."""
        real = real_arrays(arrays)
        count = {len(values) for values in real.values()}
        expected = {n for n, v in self._dataset.variables.items() if v.dimensions[:1] == (names.SAMPLE,)}
        if len(count) != 1 or set(real) != expected - {names.SAMPLE}:
            raise ValueError(f"a block holds {sorted(real)} of {count} samples, the file expects {sorted(expected)}")
        part = slice(self.samples, self.samples + count.pop())
        with reported("write", self._path):
            for name, values in real.items():
                variable = self._dataset.variables[name]
                if values.shape[1:] != variable.shape[1:]:
                    raise ValueError(f"{name} has shape {values.shape}, the file expects {variable.shape}")
                variable[part] = values
            self._dataset.variables[names.SAMPLE][part] = np.arange(part.start, part.stop)
        self.samples = part.stop

    def close(self) -> None:
        """Close the file; calling it twice does no harm."""
        if not self._closed:
            self._closed = True
            with reported("write", self._path):
                close_written(self._dataset)

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
