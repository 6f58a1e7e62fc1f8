"""Residual network: blocks of two convolutions that are added to their input, then a 1-cell convolution."""

from __future__ import annotations

from pydantic import PositiveInt

from toolkit.core.architecture import Architecture, ArchitectureBuilder, Conv
from toolkit.core.options import Options, option
from toolkit.networks.blocks import padding, residual
from toolkit.networks.mlp import ActivationKind
from toolkit.networks.plugin import NetworkPlugin, NetworkShape


class ResNetOptions(Options):
    """Options of `res_net`."""

    layers: list[PositiveInt] = option([32, 32, 32], description="Filters of each residual block.", min_length=1)
    kernel: PositiveInt = option(3, description="Cells of the kernel along each axis; odd.", units="cells")
    batch_norm: bool = option(False, description="Batch normalisation between convolution and activation.")
    activation: ActivationKind = option("relu", description="Pointwise function after each convolution.")


def build(options: ResNetOptions, shape: NetworkShape) -> Architecture:
    """The layers for this shape."""
    net = ArchitectureBuilder((shape.inputs, *shape.cells))
    channels = shape.inputs
    for i, filters in enumerate(options.layers):
        conv = Conv(channels, filters, options.kernel, padding(shape))
        residual(net, f"block{i}", (channels, filters), conv, options.batch_norm, options.activation)
        channels = filters
    net.add("out", Conv(channels, shape.outputs, kernel=1, padding=padding(shape)))
    return net.build()


PLUGIN = NetworkPlugin(
    name="res_net",
    summary="Residual blocks at one resolution; deep and easy to train.",
    options=ResNetOptions,
    build=build,
    dimensions=(1, 2, 3),
    references=("He et al. 2016, Deep residual learning for image recognition",),
)
