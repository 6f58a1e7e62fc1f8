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
    Coordinates,
    Crop,
    Dense,
    Layer,
    MaxPool,
    Pad,
    Reshape,
    SpectralConv,
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

    def __init__(self, architecture: Architecture, lines_as_products: bool = False):
        self.architecture = architecture
        shapes = node_shapes(architecture)
        dims = [len(shapes[n.inputs[0]]) - 1 for n in architecture.nodes]
        self._layers = [_module(n.layer, d, lines_as_products) for n, d in zip(architecture.nodes, dims, strict=True)]

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
            elif isinstance(layer, eqx.nn.Linear | eqx.nn.Conv | LineConvolution):
                without = isinstance(layer, eqx.nn.Linear) and layer.bias is None
                names = ("weight",) if without else ("weight", "bias")
                x = jax.vmap(_filled(layer, node.name, params, names))(inputs[0])
            elif isinstance(layer, SpectralConvolution):
                x = jax.vmap(_filled(layer, node.name, params, ("weight_re", "weight_im")))(inputs[0])
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


class LineConvolution(eqx.Module):
    """A convolution along a line as one matrix product.

    On a CPU, XLA's convolutions within a rolled loop take four times as long as these, forward and back.
    """

    layer: Conv = eqx.field(static=True)
    weight: Any = None
    bias: Any = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """(outputs, cells) of x (inputs, cells)."""
        kernel, stride, margin = self.layer.kernel, self.layer.stride, self.layer.margin
        mode = "wrap" if self.layer.padding == "circular" else "constant"
        x = jnp.pad(x.T, ((margin, margin), (0, 0)), mode=mode)
        last = stride * ((x.shape[0] - kernel) // stride) + 1
        seen = jnp.concatenate([x[start : start + last : stride] for start in range(kernel)], axis=1)
        columns = jnp.moveaxis(self.weight, 1, 2).reshape(self.layer.outputs, -1)
        return (seen @ columns.T + self.bias).T


class SpectralConvolution(eqx.Module):
    """See `architecture.SpectralConv`; axis by axis, so that no dropped mode is transformed further."""

    modes: tuple[int, ...] = eqx.field(static=True)
    weight_re: Any = None
    weight_im: Any = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """(outputs, *cells) of x (inputs, *cells)."""
        *others, last = enumerate(self.modes, start=1)
        modes = last[1]
        z = jnp.fft.rfft(x)[..., :modes]
        for axis, m in others:
            z = jnp.fft.fft(z, axis=axis)
            z = jnp.concatenate([_part(z, axis, 0, m), _part(z, axis, x.shape[axis] - m, x.shape[axis])], axis)
        z = jnp.einsum("i...,oi...->o...", z, jax.lax.complex(self.weight_re, self.weight_im))
        for axis, m in others:
            shape = [x.shape[axis] - 2 * m if i == axis else n for i, n in enumerate(z.shape)]
            gap = jnp.zeros(shape, z.dtype)
            z = jnp.concatenate([_part(z, axis, 0, m), gap, _part(z, axis, m, 2 * m)], axis)
            z = jnp.fft.ifft(z, axis=axis)
        # What an inverse real transform makes of an imaginary part at frequency 0 or n/2 is up to the library.
        frequency = jnp.arange(modes)
        inner = ((frequency > 0) & (2 * frequency != x.shape[-1])).astype(x.dtype)
        return jnp.fft.irfft(jax.lax.complex(z.real, z.imag * inner), n=x.shape[-1])


def _part(x: jax.Array, axis: int, start: int, stop: int) -> jax.Array:
    return jax.lax.slice_in_dim(x, start, stop, axis=axis)


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
        first, last = _part(x, axis, 0, 1), _part(x, axis, n - 1, n)
        before = jnp.concatenate([first, _part(x, axis, 0, n - 1)], axis)
        behind = jnp.concatenate([_part(x, axis, 1, n), last], axis)
        pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * behind], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def _coordinates(x: jax.Array) -> jax.Array:
    axes = [jnp.linspace(0, 1, n, dtype=x.dtype) for n in x.shape[1:]]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"))


def _padded(x: jax.Array, cells: int) -> jax.Array:
    """x with cells of zeros behind every axis, or without some if there are fewer than none."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *[(0, cells, 0)] * (x.ndim - 1)])


def _module(layer: Layer, dims: int, lines_as_products: bool) -> Any:
    # Shapes only: the weights come with each call, so no random key is used up and no memory held.
    key = jax.ShapeDtypeStruct((2,), "uint32")
    match layer:
        case Dense():
            return eqx.filter_eval_shape(lambda k: eqx.nn.Linear(layer.inputs, layer.outputs, layer.bias, key=k), key)
        case Conv() if dims == 1 and lines_as_products:
            return LineConvolution(layer)
        case Conv():
            mode = "CIRCULAR" if layer.padding == "circular" else "ZEROS"
            size = (layer.kernel, layer.stride, layer.margin)
            return eqx.filter_eval_shape(
                lambda k: eqx.nn.Conv(dims, layer.inputs, layer.outputs, *size, padding_mode=mode, key=k),
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
        case SpectralConv():
            return SpectralConvolution(layer.modes)
        case Coordinates():
            return _coordinates
        case Pad(cells):
            return lambda x: _padded(x, cells)
        case Crop(cells):
            return lambda x: _padded(x, -cells)
