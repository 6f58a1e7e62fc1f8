"""What an optimizer is, what it may be told, and what it remembers: the same on both backends.

An optimizer turns a direction to descend along into new parameters. Its formulas and defaults are torch's.
Its state is a flat dict of arrays, `step` and `<slot>/<parameter>`, with the same names and meaning on both
backends, so a run saved on one can go on with the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol

from toolkit.core.errors import ScenarioError
from toolkit.core.options import Options, option
from toolkit.core.registry import suggestion
from toolkit.core.schedules import LearningRate, Schedule

Params = Mapping[str, Any]
State = dict[str, Any]


class Optimizer(Protocol):
    """Takes the step along a direction; pure from the outside."""

    needs_objective: ClassVar[bool]
    """False here; True marks a `LineSearchOptimizer`."""

    def init(self, params: Params) -> State:
        """The state before the first step."""
        ...

    def update(self, direction: Params, state: State, params: Params) -> tuple[dict[str, Any], State]:
        """(new params, new state) after one step that descends along `direction`."""
        ...


class LineSearchOptimizer(Protocol):
    """Takes a step of its own choice on an objective that it may evaluate; pure from the outside."""

    needs_objective: ClassVar[bool]

    def init(self, params: Params) -> State:
        """The state before the first step."""
        ...

    def update_with(
        self, value_and_direction: Callable[[Params], tuple[Any, Params]], state: State, params: Params
    ) -> tuple[dict[str, Any], State]:
        """(new params, new state) after one iteration; value_and_direction gives scalar L(θ) and ∂L/∂θ."""
        ...


def _rate(default: float) -> Any:
    return option(default, description="Learning rate, or a schedule with its own `type`.")


def _weight_decay(default: float, what: str) -> Any:
    return option(default, description=what, ge=0)


Rate = float | Schedule
COUPLED = "Adds weight_decay · θ to the direction."
FRACTION = "Between 0 and 1; nearer to 1 averages over more steps."


class Sgd(Options):
    """θ ← θ - η u, with u = g, or u = m where m ← momentum · m + g, or with nesterov u = g + momentum · m."""

    learning_rate: Rate = _rate(1e-3)
    momentum: float = option(0.0, description=FRACTION, ge=0, lt=1)
    nesterov: bool = option(False, description="Look ahead along the momentum; needs momentum > 0.")
    weight_decay: float = _weight_decay(0.0, COUPLED)


class Adam(Options):
    """θ ← θ - η m̂ / (√v̂ + ε) with bias-corrected moments m̂, v̂. Kingma & Ba 2015.

    At step t the moments m, v are corrected to m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ). TensorFlow and Keras add ε before
    the correction, θ ← θ - η √(1 - β₂ᵗ) / (1 - β₁ᵗ) m / (√v + ε), which is ε / √(1 - β₂ᵗ) in the formula above.
    """

    learning_rate: Rate = _rate(1e-3)
    beta1: float = option(0.9, description=f"First moment. {FRACTION}", ge=0, lt=1)
    beta2: float = option(0.999, description=f"Second moment. {FRACTION}", ge=0, lt=1)
    epsilon: float = option(1e-8, description="ε, added to √v̂.", ge=0)
    epsilon_placement: Literal["corrected", "uncorrected"] = option(
        "corrected", description="What ε is added to: √v̂ (torch, Optax), or √v before its correction (Keras)."
    )
    weight_decay: float = _weight_decay(0.0, COUPLED)


class AdamW(Adam):
    """Adam with decoupled decay, θ ← (1 - η · weight_decay) θ before the step. Loshchilov & Hutter 2019."""

    weight_decay: float = _weight_decay(1e-2, "Shrinks θ by η · weight_decay at each step.")


class Adagrad(Options):
    """θ ← θ - η g / (√Σg² + ε). Duchi et al. 2011."""

    learning_rate: Rate = _rate(1e-2)
    initial_accumulator: float = option(0.0, description="Σg² before the first step.", ge=0)
    epsilon: float = option(1e-10, description="ε, added to √Σg².", ge=0)
    weight_decay: float = _weight_decay(0.0, COUPLED)


class Adadelta(Options):
    """θ ← θ - η Δ with Δ = √(E[Δ²] + ε) / √(E[g²] + ε) g. Zeiler 2012."""

    learning_rate: Rate = _rate(1.0)
    rho: float = option(0.9, description=f"Of both averages. {FRACTION}", ge=0, lt=1)
    epsilon: float = option(1e-6, description="ε, inside both roots.", ge=0)
    weight_decay: float = _weight_decay(0.0, COUPLED)


class RmsProp(Options):
    """θ ← θ - η g / (√E[g²] + ε), with E[g²] - E[g]² if centered, momentum on the quotient. Hinton 2012."""

    learning_rate: Rate = _rate(1e-2)
    alpha: float = option(0.99, description=f"Of the averages. {FRACTION}", ge=0, lt=1)
    epsilon: float = option(1e-8, description="ε, added to the root.", ge=0)
    momentum: float = option(0.0, description=FRACTION, ge=0, lt=1)
    centered: bool = option(False, description="Divide by the standard deviation of g instead of its root mean square.")
    weight_decay: float = _weight_decay(0.0, COUPLED)


class Lbfgs(Options):
    """One L-BFGS iteration per step, with a line search on the objective; see `toolkit.core.lbfgs`."""

    history: int = option(10, description="Pairs of steps and gradient differences kept.", gt=0)
    trials: int = option(30, description="Largest number of evaluations in one line search.", gt=0)


OPTIMIZERS: dict[str, type[Options]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": AdamW,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "rmsprop": RmsProp,
    "lbfgs": Lbfgs,
}
"""Options by kind, the only home of the defaults."""


def parse(kind: str, options: Mapping[str, Any], learning_rate: LearningRate | None) -> tuple[Any, LearningRate]:
    """(options with defaults, learning rate); an explicit learning rate wins over the one in options."""
    if kind not in OPTIMIZERS:
        raise ScenarioError(f"update.optimizer.type: unknown {kind!r}{suggestion(kind, list(OPTIMIZERS))}")
    parsed = OPTIMIZERS[kind].model_validate(dict(options))
    if isinstance(parsed, Sgd) and parsed.nesterov and not parsed.momentum:
        raise ScenarioError("update.optimizer.nesterov: needs momentum; set update.optimizer.momentum, usually 0.9")
    return parsed, getattr(parsed, "learning_rate", 1.0) if learning_rate is None else learning_rate


def adam_epsilon(options: Adam, step: Any, xp: Any) -> Any:
    """What Adam adds to √v̂ at step 1, 2, …; `step` is a float or a 0-d array of one where it is traced."""
    if options.epsilon_placement == "corrected":
        return options.epsilon
    return options.epsilon / xp.sqrt(1 - options.beta2**step)


def slots(options: Any) -> dict[str, float]:
    """What is remembered per parameter, by name, with its initial value."""
    match options:
        case Sgd():
            return {"momentum": 0.0} if options.momentum else {}
        case Adam():
            return {"first_moment": 0.0, "second_moment": 0.0}
        case Adagrad():
            return {"square_sum": options.initial_accumulator}
        case Adadelta():
            return {"square_average": 0.0, "delta_average": 0.0}
        case RmsProp():
            names = [
                "square_average",
                *["average"] * options.centered,
                *["momentum"] * (options.momentum > 0),
            ]
            return dict.fromkeys(names, 0.0)
    raise TypeError(f"{type(options).__name__} keeps no slots")


def initial_state(options: Any, params: Params, step: Any, xp: Any) -> State:
    """`step` and every slot of every parameter, as arrays like the parameters."""
    state = {"step": step}
    for slot, value in slots(options).items():
        state |= {f"{slot}/{name}": xp.full_like(p, value) for name, p in params.items()}
    return state


def euclidean_norm(direction: Params, xp: Any) -> Any:
    """Euclidean norm over all tensors; finite where they are, since squares of what is large would overflow."""
    largest = xp.max(xp.stack([xp.max(xp.abs(d)) for d in direction.values()]))
    scale = xp.where(largest > 0, largest, xp.ones_like(largest))
    return scale * xp.sqrt(sum(xp.sum((d / scale) ** 2) for d in direction.values()))


def clip(direction: Params, xp: Any, norm: float | None = None, value: float | None = None) -> dict[str, Any]:
    """The direction shortened to Euclidean norm `norm` over all tensors, then each component to ±`value`."""
    clipped = dict(direction)
    if norm is not None and clipped:
        length = euclidean_norm(clipped, xp)
        # c / max(|d|, c) is 1 for short directions and needs no division by a norm of zero.
        scale = norm / xp.maximum(length, xp.full_like(length, norm))
        clipped = {name: d * scale for name, d in clipped.items()}
    if value is not None:
        clipped = {
            name: xp.minimum(xp.maximum(d, xp.full_like(d, -value)), xp.full_like(d, value))
            for name, d in clipped.items()
        }
    return clipped
