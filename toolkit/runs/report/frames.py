"""What is read of a field file: some samples and some frames of each variable, never a file as a whole.

A variable that is small is read at once, a large one frame by frame. All that moves does so along one dimension, the
slider of the page: `step` of a direct optimisation, otherwise `t`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from toolkit.runs import names, panels

WHOLE = 2**26
"""Bytes up to which a variable is read at once: chunks of small files hold more than one frame."""
FRAMES = 60
COLUMNS = 240
"""Moments of curves along time, and of pictures of a line over time."""
SAMPLES = 4
PICTURES = 480
"""Pictures of one page that are worth reading; more would not fit it."""
FEWEST = 12
SIDE = 128
"""Pixels of a picture's longer side at most."""

PREDICTION = "prediction"
ROLES = {
    names.TARGET: "target",
    "": PREDICTION,
    names.REFERENCE: "true control",
    names.UNTRAINED: "before training",
}
"""What is shown side by side, by the end of a variable's name."""
NUMBERS = {PREDICTION: 0, "target": 1, "true control": 2, "before training": 3}
"""Colours of roles."""
SPACE = (*names.SPACE, *names.FACES)

Reduce = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Selection:
    """What of all variables is shown."""

    dim: str | None
    """The slider; None where nothing moves."""
    columns: tuple[int, ...]
    """Moments that curves over time have."""
    frames: tuple[int, ...]
    """Those that the slider stops at."""
    samples: int | None
    """The first so many; None without samples."""
    side: int
    """Pixels of a picture's longer side at most."""

    def coarser(self) -> Selection | None:
        """A selection that takes about half of the space; None where there is nothing left to leave out."""
        if len(self.frames) > 2 * FEWEST:
            return replace(self, frames=(*self.frames[:-1:2], self.frames[-1]))
        if self.samples is not None and self.samples > 1:
            return replace(self, samples=self.samples // 2)
        if self.side > 32:
            return replace(self, side=self.side // 2)
        if len(self.frames) > 2:
            return replace(self, frames=(*self.frames[:-1:2], self.frames[-1]))
        return None


def families(fields: xr.Dataset) -> dict[str, dict[str, str]]:
    """Variables that belong together, by the field or control: what they are, by their own names."""
    known = [str(name) for name in fields.data_vars]
    ends = [end for end in ROLES if end]
    bases = [n for n in known if not any(n.endswith(end) and n.removesuffix(end) in known for end in ends)]
    return {base: {ROLES[end]: base + end for end in ROLES if base + end in known} for base in bases}


def space_of(array: xr.DataArray) -> list[str]:
    """The axes of space that an array has, faces included."""
    return sorted((str(dim) for dim in array.dims if dim in SPACE), key=lambda dim: dim[0])


def select(fields: xr.Dataset) -> Selection:
    """What of a field file a page has room for."""
    moving = [dim for dim in (names.STEP, names.TIME) if fields.sizes.get(dim, 0) > 1]
    dim = moving[0] if moving else None
    samples = min(SAMPLES, fields.sizes[names.SAMPLE]) if names.SAMPLE in fields.sizes else None
    pictures = [a for a in fields.data_vars.values() if len(space_of(a)) > 1 and dim in a.dims]
    room = PICTURES // max(1, len(pictures))
    while samples and samples > 1 and room // samples < FEWEST:
        samples //= 2
    count = fields.sizes[dim] if dim else 1
    columns = even(count, COLUMNS)
    wanted = min(FRAMES, max(FEWEST, room // (samples or 1))) if pictures else 2 * FRAMES
    return Selection(dim, tuple(columns), tuple(columns[k] for k in even(len(columns), wanted)), samples, SIDE)


def even(count: int, most: int) -> list[int]:
    """At most so many of `count` places, evenly spread, the first and the last among them."""
    return [int(k) for k in np.unique(np.linspace(0, count - 1, min(count, most)).round())]


def main(arrays: Mapping[str, xr.DataArray]) -> xr.DataArray:
    """The prediction, or what there is instead."""
    return arrays.get(PREDICTION, next(iter(arrays.values())))


def read(array: xr.DataArray, selection: Selection, at: tuple[int, ...], reduce: Reduce) -> np.ndarray:
    """(sample, frame, …) of what `reduce` makes of each frame (sample, …) of an array; one frame where nothing moves,
    one sample where there are none."""
    sampled = names.SAMPLE in array.dims
    part = array.isel({names.SAMPLE: slice(0, selection.samples)}) if sampled else array
    part = part.transpose(names.SAMPLE, ...) if sampled else part
    dim = selection.dim

    def values(of: xr.DataArray) -> np.ndarray:
        # Not by expand_dims, which would read the whole file.
        read = np.asarray(of.values)
        return reduce(read if sampled else read[None])

    if dim is None or dim not in part.dims:
        return values(part)[:, None]
    if part.nbytes <= WHOLE:
        part = part.compute()
    return np.stack([values(part.isel({dim: k})) for k in at], axis=1)


def cut(array: xr.DataArray, dim: str | None) -> tuple[xr.DataArray, list[str]]:
    """An array with what a picture cannot show left out: the last time where another dimension moves, the middle plane
    of a volume; and what was done, in words."""
    said = []
    space = space_of(array)
    if len(space) > 1 and names.TIME in array.dims and dim != names.TIME:
        array = array.isel({names.TIME: -1})
        said.append("at the last time")
    if len(space) > 2:
        middle = array.sizes[space[2]] // 2
        at = f" = {float(array[space[2]][middle]):.4g}" if space[2] in array.coords else f", cell {middle}"
        array = array.isel({space[2]: middle})
        said.append(f"the plane {space[2]}{at}")
    return array, said


def parts(array: xr.DataArray) -> dict[str, Reduce]:
    """How an array becomes real numbers, by name: parts of a complex number, components of a vector, both from the
    last axis."""
    component = panels.component_dim(array)
    if array.dtype.kind == "c":
        return {"modulus": np.abs, "real part": np.real, "imaginary part": np.imag}
    if component is None:
        return {"": lambda values: values}
    labels = array[component].values if component in array.coords else range(array.sizes[component])
    found: Mapping[str, int] = {str(label): k for k, label in enumerate(labels)}
    return {text: (lambda values, k=k: values[..., k]) for text, k in found.items()}


def magnitude(array: xr.DataArray) -> tuple[Reduce, str]:
    """How an array becomes one real number per cell, and what that is in words."""
    component = panels.component_dim(array)
    if array.dtype.kind == "c":
        return np.abs, "modulus of the complex number"
    if component is None:
        return (lambda values: values), ""
    if array.sizes[component] == 1:
        return (lambda values: values[..., 0]), ""
    return (lambda values: np.sqrt((values.astype(float) ** 2).sum(axis=-1))), "magnitude of the vector"


def numeric(array: xr.DataArray) -> bool:
    """Whether an array can be drawn at all."""
    return array.dtype.kind in "fciu"


def ordered(array: xr.DataArray) -> xr.DataArray:
    """Dimensions in the order (rest, time, space, component)."""
    component = panels.component_dim(array)
    last = [d for d in (names.TIME, *space_of(array), component) if d is not None and d in array.dims]
    return array.transpose(..., *last)
