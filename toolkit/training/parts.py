"""The parts a learning problem is made of: an unknown, a network in its place, a term of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolkit.core.architecture import Architecture
from toolkit.physics.layout import Layout
from toolkit.physics.plugin import Loss


@dataclass(frozen=True)
class Control:
    """One unknown: `name` in the scenario, `key` where it acts."""

    name: str
    key: str
    layout: Layout

    @property
    def target(self) -> str:
        """The field, action or parameter it acts on."""
        return self.key.partition(".")[2]


@dataclass(frozen=True)
class NetworkUse:
    """A network in its place: what it sees and which controls it gives."""

    name: str
    apply: Any
    """(params, buffers, x, training) -> (y, buffers), from the backend."""
    controls: tuple[Control, ...]
    every_step: bool = False
    inputs: tuple[str, ...] = ("target",)
    """What it sees, in this order along the channels: `target`, `initial.<field>`, `state` or `state.<field>`, and
    last `time`, the fraction of the simulation that has passed."""
    architecture: Architecture | None = None
    """What `apply` evaluates, for rules that look into it."""
    gives_vector: bool = False
    """Whether its output is one vector although it sees a grid."""


@dataclass(frozen=True)
class LossTerm:
    """weight · loss, judged on one observation."""

    key: str
    loss: Loss
    weight: float = 1.0
    needs_target: bool = True
    """False where the loss judges y alone."""
