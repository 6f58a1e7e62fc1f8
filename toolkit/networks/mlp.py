"""Multi-layer perceptron: dense layers with an activation after each but the last.

Vectors go in and out as they are; a field is flattened (channels, *cells) → features and the output shaped
back, so every output cell depends on every input cell.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveInt

from toolkit.core.architecture import (
    Activation,
    Architecture,
    ArchitectureBuilder,
    BatchNorm,
    Dense,
    Initialisation,
    Reshape,
)
from toolkit.core.options import Options, option
from toolkit.networks.plugin import NetworkPlugin, NetworkShape

ActivationKind = Literal["relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu", "gelu"]


class MlpOptions(Options):
    """Options of `mlp`."""

    layers: list[PositiveInt] = option([64, 64], description="Width of each hidden layer.", units="features")
    activation: ActivationKind = option("relu", description="Pointwise function after each hidden layer.")
    batch_norm: bool = option(False, description="Batch normalisation after each hidden activation.")
    initialisation: Initialisation = option(
        "default",
        description="Weights uniform in ±1/√inputs (default), or in ±√(6/(inputs + outputs)) (glorot_uniform); "
        "biases are zero.",
    )
    bias: bool = option(True, description="Add a vector b after each product with a matrix.")
    zero_output: bool = option(
        False, description="The last layer's weights start at zero: untrained, the network gives zero."
    )


def build(options: MlpOptions, shape: NetworkShape) -> Architecture:
    """The layers for this shape."""
    net = ArchitectureBuilder((shape.inputs, *shape.cells))
    width = shape.inputs * math.prod(shape.cells)
    if shape.cells:
        net.add("flatten", Reshape((width,)))
    for i, features in enumerate(options.layers):
        net.add(f"dense{i}", Dense(width, features, options.bias))
        net.add(f"activation{i}", Activation(options.activation))
        # After the activation, as in PhiML's mlp.
        if options.batch_norm:
            net.add(f"norm{i}", BatchNorm(features))
        width = features
    start = "zero" if options.zero_output else "drawn"
    net.add("out", Dense(width, shape.outputs * math.prod(shape.cells), options.bias, start))
    if shape.cells:
        net.add("unflatten", Reshape((shape.outputs, *shape.cells)))
    return net.build(options.initialisation)


PLUGIN = NetworkPlugin(
    name="mlp",
    summary="Dense layers; for ODEs and small grids.",
    options=MlpOptions,
    build=build,
)
