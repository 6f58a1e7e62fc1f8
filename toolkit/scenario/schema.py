"""The sections of a scenario file as types: the home of every key, unit and default of the toolkit's own.

Keys that depend on a `type:` of an open set (PDE, sampler, network, loss, inverse solver, update rule) are
declared by that plugin's own `Options`; only the keys that all kinds of a section share are here. Optimizers
and schedules, a closed set, are in `toolkit.core`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.core.options import Options, option

KEYS: tuple[str, ...] = (
    *("name", "description", "references", "extends", "grid", "pde", "time", "controls", "data"),
    *("networks", "loss", "update", "train", "run", "output", "sweep"),
)
"""Top-level keys, in the order in which files are written."""

Axis = Literal["x", "y", "z"]
Side = Literal["x", "x-", "x+", "y", "y-", "y+", "z", "z-", "z+"]
BoundaryWord = Literal["periodic", "zero", "zero_gradient"]
Precision = Literal["float32", "float64"]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Numbers = float | list[float] | list[list[float]] | list[list[list[float]]] | list[list[list[list[float]]]]
"""A value per control entry: one number for all, or nested lists laid out (*cells, *components)."""


class HeaderOptions(Options):
    """What the scenario is called."""

    name: str = option(
        description="name of the scenario; the file is called <name>.yaml",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=100,
    )
    description: str = option("", description="what it is about, in a sentence")
    references: list[str] = option([], description="papers, figures, data sets it follows")


class GridOptions(Options):
    """A regular grid of cells; left out for ODEs."""

    cells: dict[Axis, Positive] = option(description="number of cells per axis", min_length=1)
    extent: dict[Axis, PositiveFloat] | None = option(
        None, description="physical size per axis; left out: cells of size 1", units="length"
    )
    boundary: BoundaryWord | float | dict[Side, BoundaryWord | float] = option(
        "periodic",
        description="what lies beyond: a word or a fixed value, for all sides, per axis (x) or side (x-, x+)",
        units="of the field",
    )

    @model_validator(mode="after")
    def _axes_in_order(self) -> GridOptions:
        axes = ("x", "y", "z")[: len(self.cells)]
        if set(self.cells) != set(axes):
            raise ValueError(f"a grid in {len(axes)} dimensions has the axes {', '.join(axes)}")
        if self.extent is not None and set(self.extent) != set(axes):
            raise ValueError(f"extent must have the axes of cells: {', '.join(axes)}")
        if isinstance(self.boundary, dict) and any(side[0] not in axes for side in self.boundary):
            raise ValueError(f"boundary may only name sides of the axes {', '.join(axes)}")
        return self


class TimeOptions(Options):
    """How long the physics runs."""

    steps: int = option(1, description="number of time steps", gt=0)
    dt: float = option(1.0, description="length of one time step", units="time", gt=0)


class ControlOptions(Options):
    """One unknown: where it acts, and where a direct optimisation starts."""

    acts_on: str = option(
        description="initial.<field>, force.<field> (one per step), source.<field> or parameter.<name>",
        pattern=r"^(initial|force|source|parameter)\.[A-Za-z_][A-Za-z0-9_]*$",
    )
    initial: Numbers | None = option(
        None,
        description="start value of a direct optimisation: a number or nested lists; none with a network",
    )


class DataOptions(Options):
    """Keys of `data` for every sampler."""

    train: Literal["infinite"] | Positive = option(
        "infinite",
        description="number of training samples; infinite: new ones for every batch",
        units="samples",
    )
    validation: int = option(64, description="number of validation samples", units="samples", ge=0)
    seed: int = option(0, description="seed of the samples", ge=0)
    shuffle: bool = option(
        True, description="another order of a finite training set in every epoch; false: always the order drawn"
    )


class FileDataOptions(Options):
    """Keys of `data` for `type: file`."""

    path: str = option(description="netCDF file with targets (and references), relative to the scenario", min_length=1)
    train: Positive | None = option(None, description="training samples; none: all but validation", units="samples")
    validation: int = option(0, description="validation samples, the last ones", units="samples", ge=0)
    seed: int = option(0, description="seed of the order of batches", ge=0)
    shuffle: bool = option(
        True, description="another order of the training samples in every epoch; false: always that of the file"
    )


Source = Annotated[str, Field(pattern=r"^(target|state|time|(initial|state)\.[A-Za-z_][A-Za-z0-9_]*)$")]


class NetworkOptions(Options):
    """Keys of a network that all kinds share."""

    input: Source | Annotated[list[Source], Field(min_length=1)] | None = option(
        None,
        description="what the network sees, in this order along its channels: target, initial.<field> (a start that "
        "the data give; not with every_step), state or of it only state.<field> (every_step only), and last time (the "
        "fraction that has passed, every_step only); left out: state if it is called at every step, else target",
    )
    output: Name | Annotated[list[Name], Field(min_length=1)] = option(description="the control or controls it gives")
    every_step: bool = option(False, description="called at each time step, as a controller in a closed loop")


class LossOptions(Options):
    """Keys of a loss term that all kinds share."""

    on: str | None = option(
        None,
        description="final.<field> or trajectory.<field>, or a control by where it acts, as force.<field>, for losses "
        "without a target; may be left out where the PDE has one field",
        pattern=r"^(final|trajectory|initial|force|source|parameter)\.[A-Za-z_][A-Za-z0-9_]*$",
    )
    weight: float = option(1.0, description="factor of this term", gt=0)


class ClipOptions(Options):
    """A limit on the direction before the optimizer takes it; one of the two."""

    norm: PositiveFloat | None = option(None, description="largest L2 norm over all parameters")
    value: PositiveFloat | None = option(None, description="largest absolute value of a component")

    @model_validator(mode="after")
    def _one_of_two(self) -> ClipOptions:
        if (self.norm is None) == (self.value is None):
            raise ValueError("give either norm or value")
        return self


class UpdateOptions(Options):
    """Keys of `update` that all rules share, besides `optimizer`."""

    clip: ClipOptions | None = option(None, description="limit on the direction: {norm: c} or {value: c}")


class TrainOptions(Options):
    """How long to train; the first limit met stops."""

    steps: Positive | None = option(1000, description="number of batches; null: until time_limit")
    batch_size: int = option(32, description="samples per batch", units="samples", gt=0)
    validate_every: int = option(10, description="steps between validations", units="steps", gt=0)
    checkpoint_every: int = option(100, description="steps between checkpoints", units="steps", gt=0)
    time_limit: PositiveFloat | None = option(
        None, description="training time, compilation not counted; null: no limit", units="s"
    )

    @model_validator(mode="after")
    def _has_a_limit(self) -> TrainOptions:
        if self.steps is None and self.time_limit is None:
            raise ValueError("training would never end: give steps or time_limit")
        return self


class PrecisionOptions(Options):
    """Floating-point types."""

    physics: Precision = option("float64", description="of the simulation and everything between it and the loss")
    network: Precision = option("float32", description="of the network's parameters and layers")


class RunOptions(Options):
    """Where and in which precision it is computed."""

    backend: Literal["torch", "jax"] = option("torch", description="library that computes")
    device: str = option("auto", description="auto, cpu, gpu or gpu:<number>", pattern=r"^(auto|cpu|gpu|gpu:[0-9]+)$")
    precision: Precision | PrecisionOptions = option(
        PrecisionOptions(), description="one word for both, or {physics: …, network: …}"
    )
    seed: int = option(0, description="seed of initial weights and batches", ge=0, lt=2**63)
    rematerialise: Positive | Literal["auto"] | None = option(
        None,
        description="time steps that a backward pass computes again at a time instead of keeping them: less memory for "
        "one more evaluation of the steps; auto: the root of time.steps, which needs least; left out: all are kept",
        units="steps",
    )


class OutputOptions(Options):
    """What is written."""

    fields: list[str] | None = option(None, description="state fields and controls to write; null: all")
    samples: int = option(8, description="validation samples written", units="samples", ge=0)
    every: int = option(1, description="time steps between written frames", units="steps", gt=0)
    format: Literal["netcdf", "zarr"] = option(
        "netcdf",
        description="of the fields: netcdf, one file; zarr, a folder of small compressed files, for fields too big for "
        "one file (needs phinverse[zarr])",
    )
    plots: bool = option(True, description="write pictures")
    activations: bool = option(
        False, description="record at every validation what share of each activation of the networks is saturated"
    )
