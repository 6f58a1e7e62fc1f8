"""Fourier neural operator: layers that mix channels mode by mode in Fourier space, beside a pointwise mixing.

    v₀ = L [x, coordinates],   v_{l+1} = σ(K_l v_l + W_l v_l) (no σ in the last),   y = Q₂ σ(Q₁ v)

K_l acts on the lowest `modes` Fourier modes alone (`SpectralConv`), W_l, L and Q are 1-cell convolutions; the cells'
coordinates in [0, 1] are appended to the input channels. Its weights do not depend on the number of cells.

Parameters: for one channel in and out in two dimensions, 12 modes, width 32, 4 layers and a head of 128 the published
count is 1 188 353, where each of the 4 · 32² · 2 · 12 · 12 = 1 179 648 complex numbers counts once. Optimizers and
checkpoints here hold real numbers, so real and imaginary parts count as two and `count_parameters` says 2 368 001.
Li et al. 2021, Fourier Neural Operator for Parametric Partial Differential Equations (ICLR), and its published code.
"""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from toolkit.core.architecture import (
    INPUT,
    Activation,
    Add,
    Architecture,
    ArchitectureBuilder,
    Concat,
    Conv,
    Coordinates,
    Crop,
    Pad,
    SpectralConv,
)
from toolkit.core.options import Options, option
from toolkit.networks.mlp import ActivationKind
from toolkit.networks.plugin import NetworkPlugin, NetworkShape

PUBLISHED_MODES = 12
PUBLISHED_PADDING = 9


class FnoOptions(Options):
    """Options of `fno`."""

    modes: PositiveInt | list[PositiveInt] | None = option(
        None,
        description="Fourier modes kept along every axis, or a list with one number per axis; at most half of the "
        "cells with padding. Null: 12, or half of the cells where that is less.",
    )
    width: PositiveInt = option(32, description="Channels of the Fourier layers.")
    layers: PositiveInt = option(4, description="Number of Fourier layers.")
    padding: NonNegativeInt | None = option(
        None,
        description="Cells of zeros behind the grid along every axis within the Fourier layers, which otherwise see a "
        "periodic field. Null: 0 on a periodic grid, else 9; the published networks have 9 on every grid.",
        units="cells",
    )
    activation: ActivationKind = option("gelu", description="Pointwise function between layers and in the head.")
    head: PositiveInt = option(128, description="Channels between the two pointwise layers at the end.")


def build(options: FnoOptions, shape: NetworkShape) -> Architecture:
    """The layers for this shape; ValueError if the grid has fewer modes than asked for."""
    padding = options.padding
    if padding is None:
        padding = 0 if shape.periodic else PUBLISHED_PADDING
    modes = _modes(options, tuple(n + padding for n in shape.cells))
    width = options.width
    net = ArchitectureBuilder((shape.inputs, *shape.cells))
    net.add("coordinates", Coordinates())
    net.add("located", Concat(), INPUT, "coordinates")
    net.add("lift", Conv(shape.inputs + len(shape.cells), width, kernel=1))
    if padding:
        net.add("pad", Pad(padding))
    for i in range(options.layers):
        before = net.last
        net.add(f"layer{i}.spectral", SpectralConv(width, width, modes), before)
        net.add(f"layer{i}.pointwise", Conv(width, width, kernel=1), before)
        net.add(f"layer{i}.sum", Add(), f"layer{i}.spectral", f"layer{i}.pointwise")
        if i < options.layers - 1:
            net.add(f"layer{i}.activation", Activation(options.activation))
    if padding:
        net.add("crop", Crop(padding))
    net.add("head", Conv(width, options.head, kernel=1))
    net.add("head_activation", Activation(options.activation))
    net.add("out", Conv(options.head, shape.outputs, kernel=1))
    return net.build()


def _modes(options: FnoOptions, cells: tuple[int, ...]) -> tuple[int, ...]:
    """Modes per axis of the padded grid."""
    if options.modes is None:
        return tuple(min(PUBLISHED_MODES, max(n // 2, 1)) for n in cells)
    modes = (options.modes,) * len(cells) if isinstance(options.modes, int) else tuple(options.modes)
    if len(modes) != len(cells):
        raise ValueError(f"modes has {len(modes)} entries but the grid has {len(cells)} dimensions")
    if any(2 * m > n for m, n in zip(modes, cells, strict=True)):
        most = min(n // 2 for n in cells)
        raise ValueError(
            f"{modes} Fourier modes need at least twice as many cells with padding, not {cells}; "
            f"use at most {most} modes, more padding or more cells"
        )
    return modes


PLUGIN = NetworkPlugin(
    name="fno",
    summary="Fourier neural operator: global layers in Fourier space; sees the whole grid.",
    options=FnoOptions,
    build=build,
    dimensions=(1, 2, 3),
    references=("Li et al. 2021, Fourier Neural Operator for Parametric Partial Differential Equations",),
)
