"""Optimizers on JAX: Optax transformations wherever their formula is torch's, one of our own where it is not.

Optax's Adagrad takes the root of the sum plus ε, torch adds ε to the root; at the first steps and near
convergence that is another method. All of it traces: step and learning rate are computed from the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from toolkit.core.jax_namespace import JaxNamespace
from toolkit.core.lbfgs import LbfgsOptimizer
from toolkit.core.optimizers import (
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Lbfgs,
    LineSearchOptimizer,
    Optimizer,
    RmsProp,
    Sgd,
    adam_epsilon,
    initial_state,
    parse,
)
from toolkit.core.schedules import LearningRate, rate_at

Arrays = dict[str, jax.Array]


def make_optimizer(
    kind: str, options: Mapping[str, Any], learning_rate: LearningRate | None = None
) -> Optimizer | LineSearchOptimizer:
    """The optimizer of this kind; without an explicit learning rate the one in options holds."""
    parsed, rate = parse(kind, options, learning_rate)
    if isinstance(parsed, Lbfgs):
        return LbfgsOptimizer(JaxNamespace(), parsed.history, parsed.trials, jax.lax.while_loop)
    return JaxOptimizer(parsed, rate)


@dataclass(frozen=True)
class _Stage:
    """One Optax transformation, and which slot of ours each field of its state is."""

    transformation: optax.GradientTransformation
    fields: Mapping[str, str]

    def update(self, updates: Any, state: Arrays, params: Arrays) -> tuple[Any, Arrays]:
        """(updates, slots after this step)."""
        template = jax.eval_shape(self.transformation.init, params)
        values: dict[str, Any] = {
            f: {name: state[f"{slot}/{name}"] for name in params} for f, slot in self.fields.items()
        }
        if "count" in getattr(template, "_fields", ()):
            values["count"] = state["step"].astype(template.count.dtype)
        before = type(template)(**values) if values else template
        updates, after = self.transformation.update(updates, before, params)
        flat = {f"{slot}/{name}": array for f, slot in self.fields.items() for name, array in getattr(after, f).items()}
        return updates, flat


class JaxOptimizer:
    """See `toolkit.core.optimizers.Optimizer`."""

    needs_objective: ClassVar[bool] = False

    def __init__(self, options: Any, learning_rate: LearningRate):
        self._options = options
        self._learning_rate = learning_rate
        self._stages = _stages(options)

    def init(self, params: Mapping[str, jax.Array]) -> Arrays:
        return initial_state(self._options, params, jnp.zeros((), jnp.int32), jnp)

    def update(
        self, direction: Mapping[str, jax.Array], state: Arrays, params: Mapping[str, jax.Array]
    ) -> tuple[Arrays, Arrays]:
        old, new = dict(params), {"step": state["step"] + 1}
        updates: Any = {name: direction[name] for name in old}
        for stage in self._stages:
            updates, memory = stage.update(updates, state, old)
            new |= memory
        # In the widest float: integer arithmetic would give the schedule single precision.
        step = state["step"].astype(jax.dtypes.canonicalize_dtype(float))
        rate = rate_at(self._learning_rate, step, jnp)
        # Casting the rate keeps float32 parameters float32 while JAX is in its 64-bit mode.
        stepped = {name: p - jnp.asarray(rate, p.dtype) * updates[name] for name, p in old.items()}
        return stepped, {name: new[name] for name in state}


def _stages(options: Any) -> list[_Stage]:
    decay = [_Stage(optax.add_decayed_weights(options.weight_decay), {})] if options.weight_decay else []
    match options:
        case Sgd():
            return [*decay, *_momentum(options.momentum, options.nesterov)]
        case Adam():
            stage = _Stage(_scale_by_adam(options), {"mu": "first_moment", "nu": "second_moment"})
            return [stage, *decay] if isinstance(options, AdamW) else [*decay, stage]
        case Adagrad():
            return [*decay, _Stage(_scale_by_root_of_sum(options.epsilon), {"square_sum": "square_sum"})]
        case Adadelta():
            adadelta = optax.scale_by_adadelta(options.rho, options.epsilon)
            return [*decay, _Stage(adadelta, {"e_g": "square_average", "e_x": "delta_average"})]
        case RmsProp():
            by = optax.scale_by_stddev if options.centered else optax.scale_by_rms
            fields = {"nu": "square_average"} | ({"mu": "average"} if options.centered else {})
            scale = _Stage(by(options.alpha, options.epsilon, eps_in_sqrt=False), fields)
            return [*decay, scale, *_momentum(options.momentum, nesterov=False)]
    raise TypeError(f"no stages for {type(options).__name__}")


def _scale_by_adam(options: Adam) -> optax.GradientTransformation:
    """m̂ / (√v̂ + ε), where ε may depend on the step."""
    fixed = optax.scale_by_adam(options.beta1, options.beta2, options.epsilon)
    if options.epsilon_placement == "corrected":
        return fixed

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        step = (state.count + 1).astype(jax.dtypes.canonicalize_dtype(float))
        epsilon = adam_epsilon(options, step, jnp)
        scaled, after = optax.scale_by_adam(options.beta1, options.beta2, epsilon).update(updates, state, params)
        # An array, unlike a number, would make float32 parameters float64.
        return jax.tree.map(lambda u, g: u.astype(g.dtype), scaled, updates), after

    return optax.GradientTransformation(fixed.init, update)


def _momentum(momentum: float, nesterov: bool) -> list[_Stage]:
    return [_Stage(optax.trace(momentum, nesterov), {"trace": "momentum"})] if momentum else []


class _RootOfSumState(NamedTuple):
    square_sum: Any


def _scale_by_root_of_sum(epsilon: float) -> optax.GradientTransformation:
    """g / (√Σg² + ε)."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _RootOfSumState]:
        square_sum = jax.tree.map(lambda g, s: s + g * g, updates, state.square_sum)
        scaled = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + epsilon), updates, square_sum)
        return scaled, _RootOfSumState(square_sum)

    return optax.GradientTransformation(lambda params: _RootOfSumState(params), update)
