"""Fields to `fields.zarr`, a Zarr store (format 3) of what `fields.nc` holds: many small files, each a few frames.

    fields.zarr/zarr.json                    attributes of the store; type, sizes and attributes of every array
    fields.zarr/<variable>/zarr.json         the same of one array
    fields.zarr/<variable>/c/<i>/<j>/…       a chunk: all samples and cells of some frames, compressed

A frame is there once the store's `zarr.json` says so. Its values are written before, to chunks in which the frames
that count already stay as they are; then `zarr.json` is replaced in one step, for all arrays together. Whenever the
writer dies, a reader that goes by the store's `zarr.json` (consolidated metadata, which xarray takes by itself) meets
whole frames, of each variable as many. Those of the arrays follow one by one, some time later, and are for readers that
take a single array. A chunk of several frames is written anew for each of them, so that a frame is in the hands of the
operating system when `append` returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr

from toolkit.core.errors import StorageError
from toolkit.physics.grid import Grid
from toolkit.runs import atomic, names
from toolkit.runs.datasets import clean_attributes
from toolkit.runs.fields import check_shape, real_arrays, reported
from toolkit.runs.layout import (
    Coordinate,
    Variable,
    attributes_of,
    check_appendable,
    check_dimensions,
    parts_of,
)
from toolkit.runs.zarr_array import METADATA, ZarrArray, as_json, described

FOLLOW_SECONDS = 1.0
"""Time after which the metadata of the arrays follow that of the store."""


class ZarrFieldWriter:
    """Writes a store of fields: `write` for whole variables, `append` for frames along `append_dim`."""

    def __init__(
        self,
        path: Path,
        variables: Sequence[Variable],
        coordinates: Sequence[Coordinate],
        attributes: Mapping[str, Any],
        append_dim: str | None = None,
        grid: Grid | None = None,
    ):
        check_appendable(coordinates, append_dim)
        arrays = _described(variables, coordinates, append_dim, grid)
        with atomic.replacing_folder(path) as temporary, reported("write", path):
            self._begin(temporary, arrays, clean_attributes(attributes), append_dim, 0)
            for given in coordinates:
                if given.name != append_dim:
                    values = given.values.astype(object) if given.is_text else given.values
                    self._write(given.variable, self._arrays[given.variable].whole(values))
            self._commit()
            self._follow()
        self._path = path

    @classmethod
    def resume(cls, path: Path, frames: int) -> ZarrFieldWriter:
        """Go on with a stream behind its first `frames` frames; later ones are dropped and written anew."""
        header = atomic.read_json(path / METADATA)
        try:
            arrays, attributes = header["consolidated_metadata"]["metadata"], header["attributes"]
            # An optimisation grows along its steps and may have times beside them.
            dim = names.STEP if names.STEP in arrays else names.TIME
            available = arrays[dim]["shape"][0]
        except (KeyError, TypeError) as error:
            raise StorageError(f"{path / METADATA} is not that of a stream of fields; start the run again") from error
        if available < frames:
            raise StorageError(f"{path} holds {available} frames, the checkpoint counts {frames}; start the run again")
        writer = cls.__new__(cls)
        with reported("write", path):
            writer._begin(path, arrays, attributes, dim, frames)
            writer._commit()
            writer._follow()
            writer._cut_back()
        return writer

    def _begin(
        self,
        path: Path,
        arrays: Mapping[str, dict[str, Any]],
        attributes: Mapping[str, Any],
        append_dim: str | None,
        frames: int,
    ) -> None:
        self._path = path
        self._append_dim = append_dim
        self._attributes = attributes
        self._arrays = {name: ZarrArray(about, append_dim) for name, about in arrays.items()}
        self.frames = frames
        """Number of frames written."""

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write whole variables by name; shapes as declared."""
        with reported("write", self._path):
            for name, values in real_arrays(arrays).items():
                if name not in self._arrays:
                    raise ValueError(f"no variable {name!r} in {self._path}; declared: {', '.join(self._arrays)}")
                array = self._arrays[name]
                if array.grows:
                    raise ValueError(f"{name} lies along {self._append_dim}; write it with `append`")
                check_shape(name, values, array.shape)
                self._write(name, array.whole(values))

    def append(self, at: float, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the next frame of every variable along the append dimension, at coordinate value `at`."""
        dim = self._append_dim
        if dim is None:
            raise ValueError(f"{self._path} was opened without a dimension to append along")
        real = real_arrays(arrays)
        streamed = {name for name, array in self._arrays.items() if array.grows} - {dim}
        if set(real) != streamed:
            raise ValueError(f"a frame holds {sorted(real)}, the store expects {sorted(streamed)}")
        for name, values in real.items():
            check_shape(name, values, self._arrays[name].frame_shape)
        with reported("write", self._path):
            for name, values in {**real, dim: np.asarray(at)}.items():
                self._write(name, self._arrays[name].with_frame(self.frames, values))
            self.frames += 1
            self._commit()
            if time.monotonic() - self._followed > FOLLOW_SECONDS:
                self._follow()

    def close(self) -> None:
        """Bring the metadata of the arrays up to date; calling it twice does no harm."""
        with reported("write", self._path):
            self._follow()

    def __enter__(self) -> ZarrFieldWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, name: str, files: Iterable[tuple[str, bytes]]) -> None:
        for key, content in files:
            atomic.swap(self._path / name / key, content)

    def _commit(self) -> None:
        """Say in the store how many frames there are, for all arrays at once."""
        for array in self._arrays.values():
            if array.grows:
                array.grow(self.frames)
        about = {name: array.about for name, array in self._arrays.items()}
        consolidated = {"kind": "inline", "must_understand": False, "metadata": about}
        header = {"zarr_format": 3, "node_type": "group", "attributes": self._attributes}
        atomic.swap(self._path / METADATA, as_json({**header, "consolidated_metadata": consolidated}))

    def _follow(self) -> None:
        """Say in each array what the store says of it."""
        for name, array in self._arrays.items():
            atomic.swap(self._path / name / METADATA, as_json(array.about))
        self._followed = time.monotonic()

    def _cut_back(self) -> None:
        """Remove the files behind the last frame that counts, and take up the row that is not full."""
        for path in self._path.rglob(f".*{atomic.PART}"):
            path.unlink(missing_ok=True)
        for name, array in self._arrays.items():
            if not array.grows:
                continue
            folder = self._path / name
            full, rest = divmod(self.frames, array.length)
            for path in (folder / "c").rglob("*"):
                if path.is_file() and array.row_of(path.relative_to(folder).as_posix()) >= full + bool(rest):
                    path.unlink()
            if rest:
                place = (*(slice(None),) * array.axis, slice(full * array.length, self.frames))
                last: Any = zarr.open_array(folder, mode="r")[place]
                self._write(name, array.resumed(self.frames, last))


def write_store(
    path: Path,
    arrays: Sequence[tuple[Variable, np.ndarray]],
    coordinates: Sequence[Coordinate],
    attributes: Mapping[str, Any],
    grid: Grid | None = None,
) -> None:
    """Write a complete store as a whole (temporary name, then renamed)."""
    with atomic.replacing_folder(path) as temporary:
        variables = [variable for variable, _ in arrays]
        with ZarrFieldWriter(temporary, variables, coordinates, attributes, grid=grid) as writer:
            writer.write({variable.name: values for variable, values in arrays})


def _described(
    variables: Sequence[Variable], coordinates: Sequence[Coordinate], append_dim: str | None, grid: Grid | None
) -> dict[str, dict[str, Any]]:
    """Metadata of all arrays by name."""
    sizes = {c.name: 0 if c.name == append_dim else len(c.values) for c in coordinates}
    labels = {c.variable for c in coordinates}
    result = {
        c.variable: described((c.name,), sizes, c.values.dtype, c.attributes, append_dim, coordinate=True)
        for c in coordinates
    }
    for variable in variables:
        check_dimensions(variable, sizes)
        about = attributes_of(variable, labels, grid)
        for part in parts_of(variable):
            whole = {"long_name": part.long_name, **about}
            result[part.name] = described(variable.dims, sizes, part.dtype, whole, append_dim)
    return result
