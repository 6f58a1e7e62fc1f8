"""What an update rule is: from parameters and a batch to a direction; the optimizer takes the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from toolkit.core.options import Options
from toolkit.physics.plugin import Timing
from toolkit.training.inversion_plan import JacobianSize, Plan


@dataclass(frozen=True)
class Update:
    """A direction to *descend along*, and what was measured where it was taken."""

    direction: Mapping[str, Any]
    """By parameter name, native arrays; same shapes as the parameters."""
    loss: Any
    """L(y, y*) summed over the batch, whatever the rule itself minimises; native scalar."""
    objective: Any = None
    """The function whose gradient the direction is, where that is not the loss; native scalar, for line searches."""
    buffers: Mapping[str, Any] = field(default_factory=dict)
    """Network buffers (running statistics) after the forward pass."""
    controls: Mapping[str, Any] = field(default_factory=dict)
    """The controls x where the direction was taken, native, by key."""
    frozen: Mapping[str, Any] = field(default_factory=dict)
    """What `repeat` may use again for further steps on the same batch."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """More native scalars for `metrics.nc`, by name."""


class UpdateRule(Protocol):
    """A direction from parameters θ (or the control x itself) and one batch; pure."""

    def __call__(self, problem: Any, params: Mapping[str, Any], buffers: Mapping[str, Any], batch: Any) -> Update:
        """The update for one batch: same arguments, same result, nothing kept."""
        ...


class RepeatedUpdateRule(UpdateRule, Protocol):
    """A rule that can give more directions for one batch without solving the physics again."""

    def repeat(
        self, problem: Any, params: Mapping[str, Any], buffers: Mapping[str, Any], batch: Any, frozen: Any
    ) -> Update:
        """The update at new parameters, towards what `Update.frozen` holds."""
        ...


class NetworkRule(Protocol):
    """A rule that can minimise any function of what is computed from θ, given its gradient there."""

    def direction(
        self, batch_map: Any, params: Mapping[str, Any], gradient: Any, inputs: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """(direction by parameter, metrics) for y(θ) (B, d), a `BatchMap`, and ∂L/∂y (B, d); `inputs` are what the
        networks in open loop see, by name."""
        ...


@runtime_checkable
class InvertingRule(Protocol):
    """A rule that decomposes the Jacobian of the batch and can tell from its size how, and whether it can."""

    def plan(self, size: JacobianSize, device: str = "cpu") -> Plan:
        """What an update will do and hold."""
        ...

    def objection(self, size: JacobianSize, device: str, machine: float) -> str | None:
        """Why it cannot, begun with the key to blame, as `update.algorithm: `; machine: bytes of memory there are."""
        ...


@dataclass(frozen=True)
class UpdateRulePlugin:
    """A kind of update rule, with what it needs and whether it has a potential."""

    name: str
    summary: str
    options: type[Options]
    build: Callable[[Any], UpdateRule]
    needs: frozenset[str] = frozenset()
    """Any of `control_reference` (x* known), `inverse_solver`, `network`, `every_step`, `independent_samples` (no
    normalisation over the batch)."""
    potential: bool | Callable[[Any], bool] = True
    """False (or options -> False): the direction is a vector field without a potential; optimizers that search along a
    line (`lbfgs`) are refused at validation."""
    check: Callable[[Any, Timing], str | None] = lambda options, timing: None
    """(options, time) -> why they do not fit, begun with the key of `update` to blame, as `flow: `; or None."""
    metrics: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """(long name, units) of what `Update.metrics` may hold, by name."""
    inner_updates: Callable[[Any], int] = lambda options: 1
    """options -> optimizer steps per batch; more than 1 needs a `RepeatedUpdateRule`."""
    network_rule: bool = False
    """True: the built rule is a `NetworkRule` as well, which other rules may name as theirs."""
    formula: str = ""
    """The direction in plain Unicode, one line per step of it; shown by `list` and in reports."""
    references: tuple[str, ...] = ()

    def has_potential(self, options: Any) -> bool:
        """Whether the direction under these options is the gradient of a function."""
        return self.potential(options) if callable(self.potential) else self.potential
