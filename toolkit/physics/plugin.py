"""What a PDE plugin and an inverse-solver plugin are: the two extension points of the physics.

States, controls and observations are mappings from a name to a PhiML tensor. Dimension names are fixed:
`sample` (batch), `x`, `y`, `z` (spatial) and `vector` (channel, the components of a field). Controls are
keyed by where they act (`initial.temperature`, `force.u`, `source.u`, `parameter.nu`), observations by where
they are read (`final.temperature`, `trajectory.u`; a trajectory has the extra batch dimension `t`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from phiml.math import Tensor

from toolkit.core.options import Options
from toolkit.physics.drawing import Drawing
from toolkit.physics.grid import Grid

State = Mapping[str, Any]
"""PhiML tensors by name; `Any`, because PhiML's operators are typed more loosely than their results are used."""


class NoOptions(Options):
    """For samplers, losses and solvers without any key of their own."""


COMPLEX = ("re", "im")
"""Components of a complex field; physics and networks see two real numbers."""


@dataclass(frozen=True)
class FieldSpec:
    """One field of a PDE's state, as files and networks see it."""

    name: str
    long_name: str
    units: str = "1"
    components: tuple[str, ...] = ()
    """Names of the entries along `vector`; empty for a scalar field."""
    on_grid: bool = True
    """False for the state of an ODE, which has no spatial dimension."""

    @property
    def is_complex(self) -> bool:
        """Whether its components are the parts of a complex number, as files hold it: `<name>_re`, `<name>_im`."""
        return self.components == COMPLEX


@dataclass(frozen=True)
class Inputs:
    """What acts on one time step besides the state: the controls of that step and the sources."""

    force: Mapping[str, Tensor] = field(default_factory=dict)
    """By field or action, for this time step."""
    source: Mapping[str, Tensor] = field(default_factory=dict)
    """By field or action, constant in time."""
    parameter: Mapping[str, Tensor] = field(default_factory=dict)
    """PDE parameters that are controls, by name; they override the scenario's value."""


class PDE(Protocol):
    """The forward physics: one differentiable time step, batched over `sample`."""

    def step(self, state: State, inputs: Inputs, t: Any, dt: float) -> dict[str, Tensor]:
        """State after time step `dt` from time `t`; pure, written with `phiml.math` or PhiFlow operators."""
        ...


@dataclass(frozen=True)
class Timing:
    """The time of a simulation, `time` in the scenario."""

    steps: int
    dt: float
    """Length of a time step."""


@dataclass(frozen=True)
class Sampler:
    """Draws the unknown controls (and what else the samples differ in) of random problems."""

    summary: str
    sample: Callable[..., dict[str, np.ndarray]]
    """(grid, pde parameters, options, generator, count) -> arrays by key. Keys are control keys
    (`initial.<field>`, …) or `target.<field>` where the sampler gives the observation itself; arrays are
    laid out (count, *cells, *components) and come from NumPy, so that both backends see the same data."""
    options: type[Options] = NoOptions
    check: Callable[..., str | None] = lambda grid, parameters, options, timing=None: None
    """(grid, pde parameters, options) -> a sentence that says why these options do not fit this grid, or None."""
    in_time: bool = False
    """True: what it draws depends on the time of the simulation, as a force per time step or a target along `t`;
    `sample` and `check` then take a `Timing` after the options."""


@dataclass(frozen=True)
class Loss:
    """A loss L(y, y*) per sample, and its Newton step in y where it has one."""

    value: Callable[[Tensor, Tensor], Tensor]
    """(y, y_target) -> loss, summed over all but `sample`; shape (sample,)."""
    newton_step: Callable[[Tensor, Tensor], Tensor] | None = None
    """(y, y_target) -> Δy = -(∂²L/∂y²)⁻¹ ∂L/∂y; None if the loss has no useful one (SIP then needs a
    solver that works on the loss itself)."""


@dataclass(frozen=True)
class LossPlugin:
    """A named kind of loss."""

    summary: str
    build: Callable[[Any], Loss]
    options: type[Options] = NoOptions
    needs_target: bool = True
    """False where the loss judges y alone; the scenario then needs no data."""
    judges: tuple[str, ...] = ()
    """Where it may be read, as `final.angle` or `trajectory.angle`; (): anywhere."""


class InverseSolver(Protocol):
    """A local inverse of the physics near a known solution y0 = P(x0)."""

    def __call__(self, x0: State, y0: State, y_target: State) -> dict[str, Tensor]:
        """x̂ near x0 with P(x̂) nearer to y_target; keys of x̂ are those of x0. Never differentiated."""
        ...


class StepInverse(Protocol):
    """A local inverse of one time step near a known (s_t, c_t) -> s_{t+1}."""

    def __call__(
        self, state: State, inputs: Inputs, after: State, target: State, step: Any
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(s̃_t, c̃_t) near (s_t, c_t) whose step leads to `target` near `after` = s_{t+1}: the state by field and the
        forces that are controls by name. `step` counts from 0 and may be a traced number."""
        ...


@dataclass(frozen=True)
class InverseProblem:
    """What a solver may use to invert: the PDE, and the map P and the loss of one batch.

    P and the loss take and give native arrays by key, plus the batch's `context` (what else its samples differ
    in), so that they can be mapped over samples; `toolkit.physics.inverse` holds flat views of them.
    """

    backend: Any
    """The active `toolkit.core` backend: derivatives, small linear algebra."""
    pde: PDE
    grid: Grid | None
    parameters: Any
    dt: float
    steps: int
    controls: Mapping[str, Any]
    """`Layout` of each control, by key."""
    observations: Mapping[str, Any]
    """`Layout` of each observation, by key."""
    context: Mapping[str, Any]
    """Native arrays (sample, …) of the batch that are neither control nor target."""
    observe: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    """P: (controls, context) -> observations; native, differentiable."""
    loss: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], Any]
    """(controls, targets, context) -> L(P(x), y*) per sample; native (sample,)."""
    states: Mapping[str, Any]
    """`Layout` of each field of the state, by name."""
    trajectory: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    """(controls, context) -> states s_0 … s_T by field; native (sample, T + 1, …)."""
    traced: Callable[..., Callable[..., Any]] = lambda name, function, *example: function
    """(name, function of native trees, *example) -> the function without its Python overhead, traced once per name
    and shapes of the example: everything that differs between batches has to be an argument."""


@dataclass(frozen=True)
class SolverSetting:
    """What an inverse solver can judge before anything runs."""

    grid: Grid | None
    parameters: Any
    """Of the PDE."""
    options: Any
    """Of the solver."""
    timing: Timing
    acting: frozenset[str]
    """Keys of all that acts, controls and what the data gives: `initial.u`, `force.u`, `parameter.nu`."""
    losses: tuple[tuple[str, float], ...]
    """Kind and weight of each loss term."""
    unknown: frozenset[str] = frozenset()
    """Those of `acting` that are controls."""


@dataclass(frozen=True)
class InverseSolverPlugin:
    """A kind of inverse solver, for one PDE or (generic) for all."""

    name: str
    summary: str
    build: Callable[[InverseProblem, Any], InverseSolver]
    options: type[Options] = NoOptions
    inverts: tuple[str, ...] | None = None
    """Names of PDEs; None: any PDE."""
    control: str | tuple[str, ...] | None = None
    """The control or controls it finds, as `initial.temperature`; None: all controls."""
    observation: str | tuple[str, ...] | None = None
    """The observation or observations it inverts, as `final.temperature`; None: any."""
    works_on: str = "observation"
    """`observation`: inverts y, is handed y0 + η Δy with Δy the Newton step of the loss in y.
    `loss`: takes its own step on L(P(x), y*), is handed y* and its step is scaled by η."""
    boundaries: frozenset[str] | None = None
    """Boundary words it supports on every side; None: all that the PDE supports."""
    physics_precision: str | None = None
    """`float64` where single precision would overflow or lose the result; None: any."""
    check: Callable[[SolverSetting], str | None] = lambda setting: None
    """Why it cannot invert this scenario and which key to change, as the end of the sentence that begins with
    "inverse solver <name> …"; or None."""
    references: tuple[str, ...] = ()

    def finds(self, control: str) -> bool:
        """Whether it finds a control, by key."""
        return self.control is None or control in _tuple(self.control)

    def inverts_observation(self, observation: str) -> bool:
        """Whether it inverts an observation, by key."""
        return self.observation is None or observation in _tuple(self.observation)


def _tuple(words: str | tuple[str, ...]) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else words


@dataclass(frozen=True)
class Monitor:
    """A number that the solver cannot report itself, measured per saved frame and validation."""

    name: str
    long_name: str
    measure: Callable[[State, State], Tensor]
    """(initial state, current state) -> one number per sample."""
    limit: float | None = None
    """A larger value (or a non-finite one) fails the run."""
    key: str = "time.dt"
    """The scenario key to change when the limit is broken."""
    units: str = "1"
    without: tuple[str, ...] = ()
    """Kinds of control (`force`, `source`) in whose presence it does not apply."""


@dataclass(frozen=True)
class ControlMetric:
    """A number that judges predicted controls, beside the control error: a distance to the nearest of several
    solutions, a clipped error. Recorded on validation samples as `<name>`, on training batches as `train_<name>`."""

    name: str
    long_name: str
    measure: Callable[[Any, State, State, State], Tensor]
    """(parameters, controls, targets, true controls or {}) -> one number per sample."""
    units: str = "1"
    needs_reference: bool = False
    """True: recorded only where the true controls are known."""


@dataclass(frozen=True)
class StabilityNumber:
    """A dimensionless number known before the run, such as CFL or diffusion number."""

    name: str
    value: float
    limit: float | None
    key: str
    """The scenario key to change when value > limit."""


@dataclass(frozen=True)
class PDEPlugin:
    """A PDE with its parameters, samplers, losses, inverse solvers and monitors: one file in `plugins/`."""

    name: str
    summary: str
    equation: str
    parameters: type[Options]
    fields: Callable[[Any, Grid | None], tuple[FieldSpec, ...]]
    """(parameters, grid) -> the fields of the state."""
    build: Callable[[Grid | None, Any], PDE]
    dimensions: tuple[int, ...] = (1, 2, 3)
    """Grid dimensions it runs in; () for an ODE, which takes no grid."""
    boundaries: frozenset[str] = frozenset({"periodic"})
    """Boundary words it accepts on a side: `periodic`, `zero`, `zero_gradient`, `value`."""
    forces: tuple[str, ...] = ()
    """Fields and actions that accept `force.<name>`."""
    sources: tuple[str, ...] = ()
    """Fields and actions that accept `source.<name>`."""
    actions: Callable[[Any, Grid | None], tuple[FieldSpec, ...]] = lambda parameters, grid: ()
    """(parameters, grid) -> what acts without being a field of the state, such as one voltage for a whole system
    (`on_grid=False` and no components: one number). Named unlike the fields, listed in `forces` or `sources`."""
    samplers: Mapping[str, Sampler] = field(default_factory=dict)
    losses: Mapping[str, LossPlugin] = field(default_factory=dict)
    inverse_solvers: Mapping[str, InverseSolverPlugin] = field(default_factory=dict)
    monitors: Callable[[Any, Grid | None], tuple[Monitor, ...]] = lambda parameters, grid: ()
    control_metrics: tuple[ControlMetric, ...] = ()
    stability: Callable[[Any, Grid | None, float], tuple[StabilityNumber, ...]] = lambda p, grid, dt: ()
    check_sample: Callable[[Grid | None, Any, Mapping[str, np.ndarray]], str | None] = lambda grid, p, sample: None
    """(grid, parameters, arrays of one sample by key, laid out (*cells, *components)) -> a sentence that says why it
    cannot be simulated, or None. Begun with a key, as `initial.u: `, it is told of what the data calls so."""
    parameter_controls: tuple[str, ...] = ()
    """Parameters that `step` reads from its inputs, so that `parameter.<name>` can be a control."""
    correct_controls: Callable[[Any, State, State, frozenset[str]], dict[str, Tensor]] | None = None
    """(parameters, controls predicted by networks, targets, keys of all else that acts: other controls, forces,
    sources of the data) -> controls that satisfy an exactly known constraint, such as a conserved mean;
    differentiable."""
    example: Mapping[str, Any] = field(default_factory=dict)
    """Values of the required parameters with which `toolkit.testing.check_plugin` builds it."""
    traceable: bool = True
    """False where a step has control flow that depends on values (iterative solvers on torch)."""
    drawing: Callable[[Any, Mapping[str, np.ndarray]], Drawing] | None = None
    """(parameters, state of one sample at one time by field) -> what it looks like, for films of systems without a
    grid; None: films show curves of the components."""
    references: tuple[str, ...] = ()
