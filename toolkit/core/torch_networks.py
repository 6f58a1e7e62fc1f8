"""Architectures on torch: torch's own modules in a graph, applied purely with `torch.func.functional_call`.

The modules live on the `meta` device: they hold shapes and options but no numbers, so one network serves
every device and precision, and building one draws nothing from torch's global random state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

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
    layer_buffers,
    layer_parameters,
    node_shapes,
)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INTERPOLATIONS = ("linear", "bilinear", "trilinear")
ACTIVATION_MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


class TorchNetwork:
    """f(params, buffers, x) of an architecture; params and buffers are dicts of tensors by layer path."""

    def __init__(self, architecture: Architecture):
        self.architecture = architecture
        # Two copies, because `train()` would change a shared one under the feet of another caller.
        self._graphs = {training: _Graph(architecture).train(training) for training in (True, False)}
        self._names: dict[str, str] = {}
        shapes = node_shapes(architecture)
        for i, node in enumerate(architecture.nodes):
            dims = len(shapes[node.name]) - 1
            for name in (*layer_parameters(node.layer, dims), *layer_buffers(node.layer, dims)):
                self._names[f"{node.name}.{name}"] = f"layers.{i}.{name}"

    def apply(
        self,
        params: Mapping[str, torch.Tensor],
        buffers: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        training: bool,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(output, buffers after this pass) for x (batch, channels, *cells); arguments stay as they are."""
        check_input(self.architecture, tuple(x.shape), training)
        # In training torch updates the running statistics in place: it gets clones to write to.
        after = {name: value.clone() if training else value for name, value in buffers.items()}
        state = {self._names[name]: value for name, value in (*params.items(), *after.items())}
        return torch.func.functional_call(self._graphs[training], state, (x,), strict=True), after


class _Graph(nn.Module):
    def __init__(self, architecture: Architecture):
        super().__init__()
        shapes = node_shapes(architecture)
        self.nodes = architecture.nodes
        self.layers = nn.ModuleList(_module(node.layer, len(shapes[node.inputs[0]]) - 1) for node in self.nodes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        results = {INPUT: x}
        for node, layer in zip(self.nodes, self.layers, strict=True):
            x = layer(*(results[name] for name in node.inputs))
            results[node.name] = x
        return x


class _Concat(nn.Module):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat(inputs, dim=1)


class _Add(nn.Module):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return sum(inputs[1:], start=inputs[0])


class _Reshape(nn.Module):
    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], *self.shape)


class _SpectralConv(nn.Module):
    """See `architecture.SpectralConv`; axis by axis, so that no dropped mode is transformed further."""

    def __init__(self, layer: SpectralConv):
        super().__init__()
        self.modes = layer.modes
        self.weight_re = nn.Parameter(torch.empty(layer.weight_shape, device="meta"))
        self.weight_im = nn.Parameter(torch.empty(layer.weight_shape, device="meta"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *others, last = enumerate(self.modes, start=2)
        modes = last[1]
        z = torch.fft.rfft(x)[..., :modes]
        for axis, m in others:
            z = torch.fft.fft(z, dim=axis)
            z = torch.cat([z.narrow(axis, 0, m), z.narrow(axis, x.shape[axis] - m, m)], axis)
        z = torch.einsum("bi...,oi...->bo...", z, torch.complex(self.weight_re, self.weight_im))
        for axis, m in others:
            shape = [x.shape[axis] - 2 * m if i == axis else n for i, n in enumerate(z.shape)]
            z = torch.cat([z.narrow(axis, 0, m), z.new_zeros(shape), z.narrow(axis, m, m)], axis)
            z = torch.fft.ifft(z, dim=axis)
        # What an inverse real transform makes of an imaginary part at frequency 0 or n/2 is up to the library.
        frequency = torch.arange(modes, device=x.device)
        inner = ((frequency > 0) & (2 * frequency != x.shape[-1])).to(x.dtype)
        return torch.fft.irfft(torch.complex(z.real, z.imag * inner), n=x.shape[-1])


class _Coordinates(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axes = [torch.linspace(0, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[2:]]
        positions = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        return positions.expand(x.shape[0], *positions.shape)


class _Pad(nn.Module):
    def __init__(self, cells: int):
        super().__init__()
        self.cells = cells

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x with cells added behind every axis, or taken away if there are fewer than none."""
        return nn.functional.pad(x, (0, self.cells) * (x.ndim - 2))


def _module(layer: Layer, dims: int) -> nn.Module:
    match layer:
        case Dense():
            return nn.Linear(layer.inputs, layer.outputs, layer.bias, device="meta")
        case Conv():
            return CONVOLUTIONS[dims - 1](
                layer.inputs,
                layer.outputs,
                layer.kernel,
                layer.stride,
                padding=layer.margin,
                padding_mode="circular" if layer.padding == "circular" else "zeros",
                device="meta",
            )
        case BatchNorm():
            norm = NORMALISATIONS[dims](layer.features, BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, device="meta")
            # The counter serves only momentum=None; without it the running statistics are all of the state.
            norm.num_batches_tracked = None
            return norm
        case Activation(kind):
            return ACTIVATION_MODULES[kind]()
        case MaxPool():
            return POOLINGS[dims - 1](2)
        case Upsample():
            return nn.Upsample(scale_factor=2, mode=INTERPOLATIONS[dims - 1], align_corners=False)
        case Concat():
            return _Concat()
        case Add():
            return _Add()
        case Reshape(shape):
            return _Reshape(shape)
        case SpectralConv():
            return _SpectralConv(layer)
        case Coordinates():
            return _Coordinates()
        case Pad(cells):
            return _Pad(cells)
        case Crop(cells):
            return _Pad(-cells)
