"""Architectures on JAX: Equinox modules without weights, filled and mapped over the batch at each call.

Equinox's own layers see one sample and are mapped with `jax.vmap`; batch normalisation sees the whole batch
and hands its running statistics back as values, with torch's conventions. Everything is pure and traces
under `jit`, `vmap` and `jacrev`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from toolkit.core.architecture import (
    BATCH_NORM_EPSILON,
    BATCH_NORM_MOMENTUM,
    INPUT,
    Activation,
    Add,
    Architecture,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Layer,
    MaxPool,
    Reshape,
    Upsample,
    check_input,
    node_shapes,
)

POOLINGS = (eqx.nn.MaxPool1d, eqx.nn.MaxPool2d, eqx.nn.MaxPool3d)
ACTIVATION_FUNCTIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    # jax.nn.leaky_relu has slope 1 at zero, torch 0.01.
    "leaky_relu": lambda x: jnp.where(x > 0, x, 0.01 * x),
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}

State = dict[str, jax.Array]


class JaxNetwork:
    """f(params, buffers, x) of an architecture; params and buffers are dicts of arrays by layer path."""

    def __init__(self, architecture: Architecture):
        self.architecture = architecture
        shapes = node_shapes(architecture)
        self._layers = [_module(n.layer, len(shapes[n.inputs[0]]) - 1) for n in architecture.nodes]

    def apply(
        self, params: Mapping[str, jax.Array], buffers: Mapping[str, jax.Array], x: jax.Array, training: bool
    ) -> tuple[jax.Array, State]:
        """(output, buffers after this pass) for x (batch, channels, *cells); arguments stay as they are."""
        check_input(self.architecture, tuple(x.shape), training)
        results, after = {INPUT: x}, dict(buffers)
        for node, layer in zip(self.architecture.nodes, self._layers, strict=True):
            inputs = [results[name] for name in node.inputs]
            if isinstance(layer, BatchNormalisation):
                layer = _filled(layer, node.name, {**params, **buffers}, ("weight", "bias", *BUFFERS))
                x, layer = layer(inputs[0], training)
                after |= {f"{node.name}.{name}": getattr(layer, name) for name in BUFFERS}
            elif isinstance(layer, eqx.nn.Linear | eqx.nn.Conv):
                x = jax.vmap(_filled(layer, node.name, params, ("weight", "bias")))(inputs[0])
            else:
                x = jax.vmap(layer)(*inputs)
            results[node.name] = x
        return x, after


BUFFERS = ("running_mean", "running_var")


class BatchNormalisation(eqx.Module):
    """Batch normalisation over (batch, channels, *cells) whose running statistics are ordinary fields."""

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any

    def __call__(self, x: jax.Array, training: bool) -> tuple[jax.Array, BatchNormalisation]:
        """(normalised x, the module after this pass)."""
        axes, column = (0, *range(2, x.ndim)), (-1, *([1] * (x.ndim - 2)))
        mean, var, after = self.running_mean, self.running_var, self
        if training:
            mean = jnp.mean(x, axes)
        centred = x - mean.reshape(column)
        if training:
            n = x.size // x.shape[1]
            var = jnp.mean(centred**2, axes)
            moved = _moved(self.running_mean, mean), _moved(self.running_var, var * (n / (n - 1)))
            after = BatchNormalisation(self.weight, self.bias, *moved)
        scale = self.weight / jnp.sqrt(var + BATCH_NORM_EPSILON)
        return centred * scale.reshape(column) + self.bias.reshape(column), after


def _moved(running: jax.Array, batch: jax.Array) -> jax.Array:
    moved = (1 - BATCH_NORM_MOMENTUM) * running + BATCH_NORM_MOMENTUM * batch
    # As on torch, nothing flows back through the statistics that a later pass will use.
    return jax.lax.stop_gradient(moved.astype(running.dtype))


def _filled(module: Any, path: str, values: Mapping[str, jax.Array], names: Sequence[str]) -> Any:
    """The module with its arrays; Equinox keeps the bias of a convolution as (out, 1, …)."""

    def fill(name: str) -> jax.Array:
        value = values[f"{path}.{name}"]
        expected = getattr(module, name)
        return value if expected is None else value.reshape(expected.shape)

    return eqx.tree_at(
        lambda m: [getattr(m, name) for name in names],
        module,
        [fill(name) for name in names],
        is_leaf=lambda leaf: leaf is None,
    )


def _upsample(x: jax.Array) -> jax.Array:
    """Twice the cells of (channels, *cells); see `architecture.Upsample`."""
    for axis in range(1, x.ndim):
        n = x.shape[axis]
        first, last = jax.lax.slice_in_dim(x, 0, 1, axis=axis), jax.lax.slice_in_dim(x, n - 1, n, axis=axis)
        before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
        behind = jnp.concatenate([jax.lax.slice_in_dim(x, 1, n, axis=axis), last], axis)
        pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * behind], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def _module(layer: Layer, dims: int) -> Any:
    # Shapes only: the weights come with each call, so no random key is used up and no memory held.
    key = jax.ShapeDtypeStruct((2,), "uint32")
    match layer:
        case Dense():
            return eqx.filter_eval_shape(lambda k: eqx.nn.Linear(layer.inputs, layer.outputs, key=k), key)
        case Conv():
            mode, padding = layer.padding.upper(), layer.kernel // 2
            return eqx.filter_eval_shape(
                lambda k: eqx.nn.Conv(
                    dims, layer.inputs, layer.outputs, layer.kernel, padding=padding, padding_mode=mode, key=k
                ),
                key,
            )
        case BatchNorm():
            return BatchNormalisation(None, None, None, None)
        case Activation(kind):
            return ACTIVATION_FUNCTIONS[kind]
        case MaxPool():
            return POOLINGS[dims - 1](2, 2)
        case Upsample():
            return _upsample
        case Concat():
            return lambda *inputs: jnp.concatenate(inputs, axis=0)
        case Add():
            return lambda *inputs: sum(inputs[1:], start=inputs[0])
        case Reshape(shape):
            return lambda x: x.reshape(shape)
