"""A checked scenario as frozen, typed objects: what `runs` builds from.

`Sections` has one attribute per section of the file. Where a section names a kind (`type:`), its object
holds the kind's descriptor as `plugin` and its own keys as `options`, an instance of the plugin's
`Options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.options import Options
from toolkit.networks.plugin import NetworkPlugin
from toolkit.physics.grid import Grid
from toolkit.physics.plugin import FieldSpec, InverseSolverPlugin, LossPlugin, PDEPlugin, Sampler
from toolkit.scenario.schema import (
    ClipOptions,
    HeaderOptions,
    OutputOptions,
    RunOptions,
    TimeOptions,
    TrainOptions,
)
from toolkit.training.rules.base import UpdateRulePlugin


@dataclass(frozen=True)
class PDEChoice:
    """`pde`."""

    type: str
    options: Any
    """The PDE's parameters."""
    plugin: PDEPlugin


@dataclass(frozen=True)
class Control:
    """One entry of `controls`."""

    name: str
    acts_on: str
    """`initial.<field>`, `force.<field or action>`, `source.<field or action>` or `parameter.<name>`."""
    initial: Any = None
    """Start value of a direct optimisation: a number or nested lists; None where a network gives it."""

    @property
    def role(self) -> str:
        """`initial`, `force`, `source` or `parameter`."""
        return self.acts_on.partition(".")[0]

    @property
    def target(self) -> str:
        """The field, action or parameter it acts on."""
        return self.acts_on.partition(".")[2]


@dataclass(frozen=True)
class DataChoice:
    """`data`: a sampler of the PDE, or a file (then `sampler` is None)."""

    type: str
    train: int | None
    """Number of training samples; None: infinitely many (sampler), all but validation (file)."""
    validation: int
    seed: int
    options: Any = None
    sampler: Sampler | None = None
    path: Path | None = None
    shuffle: bool = True
    """Whether a finite training set has another order in every epoch."""

    @property
    def infinite(self) -> bool:
        """Whether every batch is new."""
        return self.sampler is not None and self.train is None


@dataclass(frozen=True)
class NetworkChoice:
    """One entry of `networks`."""

    name: str
    type: str
    input: tuple[str, ...]
    """Any of `target`, `initial.<field>`, `state`, `state.<field>`, `time`."""
    output: tuple[str, ...]
    """Names of controls."""
    every_step: bool
    options: Any
    plugin: NetworkPlugin


@dataclass(frozen=True)
class LossTerm:
    """One term of `loss`."""

    type: str
    on: str
    """`final.<field>`, `trajectory.<field>`, or where a control acts."""
    weight: float
    options: Any
    plugin: LossPlugin


@dataclass(frozen=True)
class SolverChoice:
    """`update.inverse_solver`."""

    type: str
    options: Any
    plugin: InverseSolverPlugin


@dataclass(frozen=True)
class RuleChoice:
    """`update.network_rule`."""

    type: str
    options: Any
    plugin: UpdateRulePlugin


@dataclass(frozen=True)
class ScheduleChoice:
    """`update.optimizer.learning_rate` that changes with the step."""

    type: str
    options: Any
    """An instance of a class of `toolkit.core.schedules`, a function of the step."""


@dataclass(frozen=True)
class OptimizerChoice:
    """`update.optimizer`."""

    type: str
    learning_rate: float | ScheduleChoice
    options: Options
    """Its other keys; `learning_rate` above counts, not the one in here."""


@dataclass(frozen=True)
class UpdateChoice:
    """`update`."""

    type: str
    optimizer: OptimizerChoice
    clip: ClipOptions | None
    options: Any
    plugin: UpdateRulePlugin
    inverse_solver: SolverChoice | None = None
    network_rule: RuleChoice | None = None

    @property
    def needs(self) -> frozenset[str]:
        """What the rule and its network rule need."""
        return self.plugin.needs | (self.network_rule.plugin.needs if self.network_rule else frozenset())


@dataclass(frozen=True)
class Sections:
    """Everything a scenario says, checked key by key."""

    header: HeaderOptions
    grid: Grid | None
    pde: PDEChoice
    fields: Mapping[str, FieldSpec]
    """Fields of the PDE's state, by name."""
    time: TimeOptions
    controls: Mapping[str, Control]
    data: DataChoice | None
    networks: Mapping[str, NetworkChoice]
    loss: tuple[LossTerm, ...]
    update: UpdateChoice | None
    train: TrainOptions
    run: RunOptions
    output: OutputOptions
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """Axes as written: dotted key -> list of values, or name -> {label: overrides}."""
    actions: Mapping[str, FieldSpec] = field(default_factory=dict)
    """What can act without being a field of the state, by name."""

    @property
    def described(self) -> dict[str, FieldSpec]:
        """Fields and actions by name: what controls other than parameters act on."""
        return {**self.fields, **self.actions}

    @property
    def physics_precision(self) -> str:
        """`float32` or `float64`."""
        return self.run.precision if isinstance(self.run.precision, str) else self.run.precision.physics

    @property
    def network_precision(self) -> str:
        """`float32` or `float64`."""
        return self.run.precision if isinstance(self.run.precision, str) else self.run.precision.network
