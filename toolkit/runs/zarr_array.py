"""One array of a Zarr store as its writer sees it: what it looks like, and rows of chunks as the bytes of files.

A row is what lies side by side at one place along the axis that rows follow each other on, the frames of an array that
grows: one chunk, or several where a single frame is large.

Reference: Zarr core specification, version 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.buffer import default_buffer_prototype
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from toolkit.runs import names

METADATA = "zarr.json"
CHUNK_BYTES = 2**20
"""Uncompressed size up to which frames share a chunk: few files, and little to write anew for each frame."""
MOST_FRAMES = 64
"""Frames of a chunk, however small they are."""
FRAME_BYTES = 2**26
"""Size above which one frame is several chunks; a reader holds whole chunks in memory."""
COORDINATE_FRAMES = 1024
"""Values of a chunk of the coordinate that grows."""
COMPRESSOR = Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE)
"""As small as Zstandard on fields, in a third of the time. Used by itself, since `zarr` would hand every chunk to
another thread and wait for it, which takes longer."""


class ZarrArray:
    """An array by its metadata, which is the content of its `zarr.json`."""

    def __init__(self, about: dict[str, Any], append_dim: str | None):
        self.about = about
        self.grows = append_dim in self.dims
        """Whether frames are appended to it."""
        self.axis = self.dims.index(append_dim) if append_dim in self.dims else 0
        """Dimension along which rows follow each other."""
        self._tail = self._empty(self._row()) if self.grows else np.empty(0)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions."""
        return tuple(self.about.get("dimension_names", ()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes; along the dimension that grows, the frames that count."""
        return tuple(self.about["shape"])

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Sizes of one frame."""
        return tuple(size for i, size in enumerate(self.shape) if i != self.axis)

    @property
    def length(self) -> int:
        """Frames, or places along the axis, of one row."""
        return self._chunk[self.axis]

    def grow(self, frames: int) -> None:
        """Count this many frames."""
        self.about["shape"][self.axis] = frames

    def with_frame(self, index: int, values: np.ndarray) -> Iterator[tuple[str, bytes]]:
        """The files of the row that holds frame `index`, the frames of this row before it included."""
        number, place = divmod(index, self.length)
        if place == 0:
            self._tail[...] = self._empty(())
        self._tail[self._at(place)] = values
        return self._encoded(number, self._tail)

    def resumed(self, frames: int, last: np.ndarray) -> Iterator[tuple[str, bytes]]:
        """Go on behind `frames` frames, of which `last` are those of a row that is not full; the files of that row."""
        self._tail[...] = self._empty(())
        self._tail[self._at(slice(0, last.shape[self.axis]))] = last
        return self._encoded(frames // self.length, self._tail)

    def whole(self, values: np.ndarray) -> Iterator[tuple[str, bytes]]:
        """The files of all values, row by row."""
        if not self.dims:
            yield from self._encoded(0, values)
            return
        for number in range(math.ceil(values.shape[self.axis] / self.length)):
            yield from self._encoded(number, values[self._at(slice(number * self.length, (number + 1) * self.length))])

    def row_of(self, key: str) -> int:
        """The number of the row that a file belongs to."""
        return int(key.split("/")[1 + self.axis])

    @property
    def _chunk(self) -> list[int]:
        return self.about["chunk_grid"]["configuration"]["chunk_shape"]

    def _row(self) -> list[int]:
        """Sizes of a row."""
        return [self._chunk[i] if i == self.axis else size for i, size in enumerate(self.shape)]

    def _empty(self, shape: Sequence[int]) -> np.ndarray:
        return np.full(shape, float(self.about["fill_value"]), np.dtype(self.about["data_type"]).newbyteorder("<"))

    def _at(self, place: int | slice) -> tuple[int | slice, ...]:
        return (*(slice(None),) * self.axis, place)

    def _encoded(self, number: int, values: np.ndarray) -> Iterator[tuple[str, bytes]]:
        """Row `number` by the names of its files."""
        if self.about["data_type"] == "string":
            # Labels, which are one chunk.
            yield "c/0", _encoded_text(self.about, values)
            return
        counts = [math.ceil(size / chunk) for size, chunk in zip(values.shape, self._chunk, strict=True)]
        for place in np.ndindex(*counts):
            part = values[tuple(slice(k * n, (k + 1) * n) for k, n in zip(place, self._chunk, strict=True))]
            # Chunks at the rim are as large as all others.
            whole = self._empty(self._chunk)
            whole[tuple(slice(0, size) for size in part.shape)] = part
            at = [number if i == self.axis else k for i, k in enumerate(place)]
            yield "/".join(["c", *map(str, at)]), COMPRESSOR.encode(whole)


def _encoded_text(about: Mapping[str, Any], values: np.ndarray) -> bytes:
    files: dict[str, Any] = {METADATA: default_buffer_prototype().buffer.from_bytes(as_json(about))}
    zarr.open_array(MemoryStore(files), mode="r+")[...] = values
    return files["c/0"].to_bytes()


def described(
    dims: Sequence[str],
    sizes: Mapping[str, int],
    dtype: Any,
    attributes: Mapping[str, Any],
    append_dim: str | None,
    coordinate: bool = False,
) -> dict[str, Any]:
    """The metadata of a new array."""
    shape = [sizes[dim] for dim in dims]
    kind = np.dtype(dtype)
    options: dict[str, Any] = {}
    if kind.kind != "U":
        options["compressors"] = BloscCodec(cname=COMPRESSOR.cname, clevel=COMPRESSOR.clevel, shuffle="shuffle")
        options["fill_value"] = math.nan if kind.kind == "f" and not coordinate else 0
    chunks = [COORDINATE_FRAMES] if coordinate and append_dim in dims else _chunks(dims, shape, kind, append_dim)
    files: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(files),
        shape=tuple(shape),
        chunks=tuple(chunks),
        dtype=str if kind.kind == "U" else kind,
        dimension_names=list(dims),
        attributes=dict(attributes),
        **options,
    )
    return json.loads(files[METADATA].to_bytes())


def _chunks(dims: Sequence[str], shape: Sequence[int], kind: np.dtype, append_dim: str | None) -> list[int]:
    """Some whole frames; parts of one where it is very large."""
    space = [dim in names.SPACE or names.is_component(dim) for dim in dims]
    chunks = [1 if dim == append_dim else max(1, size) for dim, size in zip(dims, shape, strict=True)]
    itemsize = max(1, kind.itemsize)
    if append_dim in dims:
        together = CHUNK_BYTES // (math.prod(chunks) * itemsize)
        chunks[[dim == append_dim for dim in dims].index(True)] = min(max(1, together), MOST_FRAMES)
    else:
        # Samples and frames first, as far as that helps.
        _halve(chunks, [i for i, inner in enumerate(space) if not inner], CHUNK_BYTES // itemsize)
    _halve(chunks, range(len(chunks)), FRAME_BYTES // itemsize)
    return chunks


def _halve(chunks: list[int], allowed: Sequence[int], limit: int) -> None:
    """Halve sizes, the first ones first, until so many values are left or nothing can be halved."""
    while math.prod(chunks) > limit and any(chunks[i] > 1 for i in allowed):
        i = next(i for i in allowed if chunks[i] > 1)
        chunks[i] = math.ceil(chunks[i] / 2)


def as_json(value: Any) -> bytes:
    """Plain data as the bytes of a JSON file; NaN stands in Zarr's metadata as text."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
