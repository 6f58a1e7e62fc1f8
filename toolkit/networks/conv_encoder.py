"""Convolutional encoder: strided convolutions with an activation each, then dense layers; sees a grid, gives a vector.

Per convolution of kernel k and stride s, n cells become ⌊(n − k) / s⌋ + 1 (`valid`), or ⌈n / s⌉ (`same`, k odd), where
k // 2 cells beyond each side are those of the other side on a periodic grid and zero otherwise. The last convolution
is flattened (filters, *cells) → features; each dense layer but the last has the activation too.

With 32 cells of two channels, the defaults and one value to give this is the controller of Schnell and Thuerey 2024
for the quantum system: 60 x 15, 60 x 7, 420 → 1, 11 701 weights.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveInt

from toolkit.core.architecture import (
    Activation,
    Architecture,
    ArchitectureBuilder,
    Conv,
    Dense,
    Initialisation,
    Reshape,
)
from toolkit.core.options import Options, option
from toolkit.networks.blocks import padding
from toolkit.networks.mlp import ActivationKind
from toolkit.networks.plugin import NetworkPlugin, NetworkShape


class ConvEncoderOptions(Options):
    """Options of `conv_encoder`."""

    filters: list[PositiveInt] = option([60, 60], description="Filters of each convolution.", min_length=1)
    kernel: PositiveInt = option(
        3, description="Cells of the kernel along each axis; odd with padding `same`.", units="cells"
    )
    stride: PositiveInt = option(2, description="Cells from one place of the kernel to the next.", units="cells")
    padding: Literal["valid", "same"] = option(
        "valid",
        description="`valid`: the kernel stays within the grid; `same`: it is centred on cells up to the sides, beyond "
        "which the grid goes on periodically or with zeros.",
    )
    dense: list[PositiveInt] = option(
        [], description="Width of each hidden layer after the convolutions.", units="features"
    )
    activation: ActivationKind = option(
        "tanh", description="Pointwise function after each convolution and hidden layer."
    )
    initialisation: Initialisation = option(
        "default",
        description="Weights uniform in ±1/√(inputs · kernel cells) (default), or in ±√(6/((inputs + outputs) · kernel "
        "cells)) (glorot_uniform); biases are zero.",
    )
    zero_output: bool = option(
        False, description="The last layer's weights start at zero: untrained, the network gives zero."
    )


def build(options: ConvEncoderOptions, shape: NetworkShape) -> Architecture:
    """The layers for this shape; ValueError if the grid has too few cells for the convolutions."""
    net = ArchitectureBuilder((shape.inputs, *shape.cells))
    beyond = "valid" if options.padding == "valid" else padding(shape)
    channels = shape.inputs
    for i, filters in enumerate(options.filters):
        net.add(f"conv{i}", Conv(channels, filters, options.kernel, beyond, options.stride))
        net.add(f"activation{i}", Activation(options.activation))
        channels = filters
    width = math.prod(net.build().output_shape)
    net.add("flatten", Reshape((width,)))
    for i, features in enumerate(options.dense):
        net.add(f"dense{i}", Dense(width, features))
        net.add(f"dense_activation{i}", Activation(options.activation))
        width = features
    net.add("out", Dense(width, shape.outputs, start="zero" if options.zero_output else "drawn"))
    return net.build(options.initialisation)


PLUGIN = NetworkPlugin(
    name="conv_encoder",
    summary="Strided convolutions and dense layers; sees a grid and gives values off the grid.",
    options=ConvEncoderOptions,
    build=build,
    dimensions=(1, 2, 3),
    gives_vector=True,
    references=("Schnell, Thuerey: Stabilizing Backpropagation Through Time to Learn Complex Physics, ICLR 2024",),
)
