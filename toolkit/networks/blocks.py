"""Blocks of layers that several topologies share; node names and topology follow PhiML's networks."""

from __future__ import annotations

from toolkit.core.architecture import Activation, Add, ArchitectureBuilder, BatchNorm, Conv, Padding
from toolkit.networks.plugin import NetworkShape


def padding(shape: NetworkShape) -> Padding:
    """How convolutions pad: around the grid where it is periodic on every side, otherwise with zeros."""
    return "circular" if shape.periodic else "zeros"


def double_conv(
    net: ArchitectureBuilder,
    path: str,
    channels: tuple[int, int, int],
    conv: Conv,
    batch_norm: bool,
    activation: str,
) -> str:
    """(convolution, normalisation, activation) twice, channels (in, middle, out); returns the last node.

    `conv` gives kernel and padding.
    """
    for i in (1, 2):
        net.add(f"{path}.conv{i}", Conv(channels[i - 1], channels[i], conv.kernel, conv.padding))
        if batch_norm:
            net.add(f"{path}.norm{i}", BatchNorm(channels[i]))
        net.add(f"{path}.activation{i}", Activation(activation))
    return net.last


def residual(
    net: ArchitectureBuilder,
    path: str,
    channels: tuple[int, int],
    conv: Conv,
    batch_norm: bool,
    activation: str,
) -> str:
    """Double convolution of x, plus x, which passes a 1-cell convolution if channels (in, out) differ."""
    skip = net.last
    inner = double_conv(net, path, (channels[0], channels[1], channels[1]), conv, batch_norm, activation)
    if channels[0] != channels[1]:
        skip = net.add(f"{path}.skip", Conv(*channels, kernel=1, padding=conv.padding), skip)
        if batch_norm:
            skip = net.add(f"{path}.skip_norm", BatchNorm(channels[1]))
    return net.add(f"{path}.sum", Add(), inner, skip)
