"""Between native arrays of fields and what a network takes: channels on the grid's cells, or one vector.

A network sees (B, channels, *cells), channels being components times time steps of every field in turn. Where some of
the fields it touches lie on a grid and some do not, it sees and gives (B, values): all values of one array after the
other, each in the order of its native layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.core.backend import Backend
from toolkit.physics.layout import Layout


def channel_count(layout: Layout) -> int:
    """Channels a network needs for a field of this layout: components times time steps."""
    return max(len(layout.components), 1) * (layout.steps or 1)


def to_channels(backend: Backend, array: Any, layout: Layout, as_vector: bool = False) -> Any:
    """(B, channels, *cells) of a native array (B, [t], *cells, [components]), or (B, values)."""
    xp, cells = backend.xp, tuple((layout.cells or {}).values())
    if as_vector:
        return xp.reshape(array, (array.shape[0], layout.size))
    if layout.components:
        array = xp.moveaxis(array, -1, 1 if layout.steps is None else 2)
    return xp.reshape(array, (array.shape[0], channel_count(layout), *cells))


def from_channels(backend: Backend, array: Any, layout: Layout, as_vector: bool = False) -> Any:
    """The native array of `to_channels`."""
    xp, cells = backend.xp, tuple((layout.cells or {}).values())
    if as_vector:
        return xp.reshape(array, (array.shape[0], *layout.shape))
    time = () if layout.steps is None else (layout.steps,)
    vector = (len(layout.components),) if layout.components else ()
    array = xp.reshape(array, (array.shape[0], *time, *vector, *cells))
    return xp.moveaxis(array, 1 + len(time), -1) if vector else array


def split(backend: Backend, out: Any, layouts: Mapping[str, Layout], as_vector: bool = False) -> dict[str, Any]:
    """Native arrays by key from a network's output, which holds one after the other."""
    result, start = {}, 0
    for key, layout in layouts.items():
        end = start + (layout.size if as_vector else channel_count(layout))
        result[key] = from_channels(backend, out[:, start:end], layout, as_vector)
        start = end
    return result
