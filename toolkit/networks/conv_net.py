"""Plain convolutional network: convolutions with an activation each, then a 1-cell convolution."""

from __future__ import annotations

from pydantic import PositiveInt

from toolkit.core.architecture import Activation, Architecture, ArchitectureBuilder, BatchNorm, Conv
from toolkit.core.options import Options, option
from toolkit.networks.blocks import padding
from toolkit.networks.mlp import ActivationKind
from toolkit.networks.plugin import NetworkPlugin, NetworkShape


class ConvNetOptions(Options):
    """Options of `conv_net`."""

    layers: list[PositiveInt] = option([32, 32, 32], description="Filters of each convolution.", min_length=1)
    kernel: PositiveInt = option(3, description="Cells of the kernel along each axis; odd.", units="cells")
    batch_norm: bool = option(False, description="Batch normalisation between convolution and activation.")
    activation: ActivationKind = option("relu", description="Pointwise function after each convolution.")


def build(options: ConvNetOptions, shape: NetworkShape) -> Architecture:
    """The layers for this shape."""
    net = ArchitectureBuilder((shape.inputs, *shape.cells))
    channels = shape.inputs
    for i, filters in enumerate(options.layers):
        net.add(f"conv{i}", Conv(channels, filters, options.kernel, padding(shape)))
        if options.batch_norm:
            net.add(f"norm{i}", BatchNorm(filters))
        net.add(f"activation{i}", Activation(options.activation))
        channels = filters
    net.add("out", Conv(channels, shape.outputs, kernel=1, padding=padding(shape)))
    return net.build()


PLUGIN = NetworkPlugin(
    name="conv_net",
    summary="Convolutions at one resolution; sees as far as its kernels reach.",
    options=ConvNetOptions,
    build=build,
    dimensions=(1, 2, 3),
)
