"""What an update rule is: from parameters and a batch to a direction; the optimizer takes the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from toolkit.core.options import Options


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


@dataclass(frozen=True)
class UpdateRulePlugin:
    """A kind of update rule, with what it needs and whether it has a potential."""

    name: str
    summary: str
    options: type[Options]
    build: Callable[[Any], UpdateRule]
    needs: frozenset[str] = frozenset()
    """Any of `control_reference` (x* known), `inverse_solver`, `network`, `every_step`."""
    potential: bool = True
    """False: the direction is a vector field without a potential; optimizers that search along a line
    (`lbfgs`) are refused at validation."""
    inner_updates: Callable[[Any], int] = lambda options: 1
    """options -> optimizer steps per batch; more than 1 needs a `RepeatedUpdateRule`."""
    references: tuple[str, ...] = ()
