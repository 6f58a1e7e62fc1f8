"""Linear feedback: one dense layer, y = W x (+ b), from random, zero or given weights.

As in a linear-quadratic regulator the output is a product of what is seen with a gain matrix. A field is flattened
(channels, *cells) → features and the output shaped back.
"""

from __future__ import annotations

import math
from typing import Literal

from toolkit.core.architecture import Architecture, ArchitectureBuilder, Dense, Initialisation, Reshape
from toolkit.core.options import Options, option
from toolkit.networks.plugin import NetworkPlugin, NetworkShape


class LinearOptions(Options):
    """Options of `linear`."""

    bias: bool = option(False, description="Add a vector b, which starts at zero.")
    weight: list[list[float]] | None = option(
        None,
        description="W before training: one row per value that the network gives, one column per value that it sees; "
        "null: random.",
    )
    zero_output: bool = option(False, description="W starts at zero.")
    initialisation: Initialisation = option(
        "default",
        description="Random weights uniform in ±1/√inputs (default), or in ±√(6/(inputs + outputs)) (glorot_uniform).",
    )


def build(options: LinearOptions, shape: NetworkShape) -> Architecture:
    """The layer for this shape; ValueError if the given weights have another one."""
    inputs, outputs = (n * math.prod(shape.cells) for n in (shape.inputs, shape.outputs))
    net = ArchitectureBuilder((shape.inputs, *shape.cells))
    if shape.cells:
        net.add("flatten", Reshape((inputs,)))
    net.add("out", Dense(inputs, outputs, options.bias, _start(options, outputs, inputs)))
    if shape.cells:
        net.add("unflatten", Reshape((shape.outputs, *shape.cells)))
    return net.build(options.initialisation)


def _start(
    options: LinearOptions, outputs: int, inputs: int
) -> tuple[tuple[float, ...], ...] | Literal["drawn", "zero"]:
    rows = options.weight
    if rows is None:
        return "zero" if options.zero_output else "drawn"
    if options.zero_output:
        raise ValueError("zero_output and weight both say where W starts; give one of them")
    expected = f"{outputs} rows (values given) of {inputs} numbers (values seen)"
    if len(rows) != outputs:
        raise ValueError(f"weight needs {expected}, it has {len(rows)} rows")
    for i, row in enumerate(rows, start=1):
        if len(row) != inputs:
            raise ValueError(f"weight needs {expected}, its row {i} has {len(row)} numbers")
    return tuple(tuple(row) for row in rows)


PLUGIN = NetworkPlugin(
    name="linear",
    summary="One dense layer without activation; linear feedback.",
    options=LinearOptions,
    build=build,
)
