"""What a network plugin is: a named topology with options, described once for both backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolkit.core.architecture import Architecture
from toolkit.core.options import Options


@dataclass(frozen=True)
class NetworkShape:
    """What a network maps: channels and cells of its input and output."""

    inputs: int
    """Input channels, or features where there is no grid."""
    outputs: int
    """Output channels, or features where there is no grid or the network gives a vector."""
    cells: tuple[int, ...] = ()
    """Cells per spatial axis; () for vectors."""
    periodic: bool = False
    """Whether every side of the grid is periodic: convolutions then pad circularly."""


@dataclass(frozen=True)
class NetworkPlugin:
    """A kind of network; `build` raises ValueError with a sentence when shape and options do not fit."""

    name: str
    summary: str
    options: type[Options]
    build: Callable[[Any, NetworkShape], Architecture]
    dimensions: tuple[int, ...] = (0, 1, 2, 3)
    """Spatial dimensions it takes; 0 = vectors without a grid."""
    gives_vector: bool = False
    """Whether it sees a grid but gives one vector, all values of its controls: (channels, *cells) -> (features,)."""
    references: tuple[str, ...] = ()
