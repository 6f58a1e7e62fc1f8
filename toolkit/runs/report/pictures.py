"""Fields as small pictures: averaged over cells to a bounded size, coloured by a common scale, as PNG in a data URI.

Values that are not finite have no colour: the page shows a hatched background there.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.ticker import MaxNLocator
from PIL import Image

from toolkit.runs import panels
from toolkit.runs.report.plot import Tick, number

LEVELS = 255
HOLE = 255
"""Index of what is not finite."""
PNG = "data:image/png;base64,"


@dataclass(frozen=True)
class Scale:
    """Colours of values from low to high."""

    low: float
    high: float
    colours: str
    """Name of a matplotlib colour map."""

    def palette(self) -> list[int]:
        """Red, green and blue of every level."""
        rgba = mpl.colormaps[self.colours](np.linspace(0, 1, LEVELS))
        return [round(255 * float(v)) for v in rgba[:, :3].ravel()] + [128, 128, 128]

    def indices(self, values: np.ndarray) -> np.ndarray:
        """Levels of values, HOLE where they are not finite."""
        there = np.isfinite(values)
        share = (np.where(there, values, self.low) - self.low) / (self.high - self.low)
        levels = np.clip(np.rint(share * (LEVELS - 1)), 0, LEVELS - 1)
        return np.where(there, levels, HOLE).astype(np.uint8)

    def ticks(self) -> list[Tick]:
        """Marks along the bar, in percent of its length."""
        nice = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        inside = [v for v in nice if self.low <= v <= self.high]
        return [Tick(round(100 * (v - self.low) / (self.high - self.low), 2), number(float(v))) for v in inside]

    def bar(self) -> str:
        """The bar itself, one pixel high."""
        return encode(np.arange(LEVELS, dtype=np.uint8)[None, :], self.palette())


def scale_of(arrays: Sequence[np.ndarray], difference: bool = False) -> Scale:
    """A common scale, chosen as for the other pictures of a run."""
    joined = np.concatenate([np.ravel(a) for a in arrays]) if arrays else np.zeros(0)
    norm, colours = panels.norm_of([xr.DataArray(joined)], difference)
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    return Scale(low, high if high > low else low + 1.0, colours)


def encode(indices: np.ndarray, palette: list[int]) -> str:
    """A picture (rows from the top) as base64 text without its prefix."""
    # Only the colours that occur: a palette of all would be larger than a small picture.
    levels, compact = np.unique(indices, return_inverse=True)
    image = Image.fromarray(compact.reshape(indices.shape).astype(np.uint8))
    image.putpalette([part for level in levels.tolist() for part in palette[3 * level : 3 * level + 3]])
    hole = {"transparency": int(np.argmax(levels == HOLE))} if HOLE in levels else {}
    file = io.BytesIO()
    image.save(file, "PNG", **hole)
    return base64.b64encode(file.getvalue()).decode("ascii")


def upright(values: np.ndarray) -> np.ndarray:
    """An array (across, up) as rows from the top."""
    return np.ascontiguousarray(values.T[::-1])


def shrunk(values: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Averages over blocks of cells along the last axes, so that none of them is longer than its side.

    What is not finite is left out of an average; a block without any finite value stays without.
    """
    there = np.isfinite(values)
    total, count = np.where(there, values, 0.0).astype(np.float64), there.astype(np.float64)
    if all(block(values.shape[k], side) == 1 for k, side in zip(range(-len(sides), 0), sides, strict=True)):
        return np.where(there, total, np.nan)
    for axis, side in zip(range(-len(sides), 0), sides, strict=True):
        starts = np.arange(0, total.shape[axis], block(total.shape[axis], side))
        with np.errstate(over="ignore"):
            # A sum beyond all numbers has no colour either.
            total = np.add.reduceat(total, starts, axis=axis)
        count = np.add.reduceat(count, starts, axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def block(cells: int, side: int) -> int:
    """How many cells are averaged to one."""
    return max(1, -(-cells // side))
