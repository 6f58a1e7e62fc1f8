"""U-net: double convolutions on ever coarser grids and back, with skip connections between equal grids.

Down: 2-cell max-pooling, then a double convolution. Up: linear upsampling ×2, the skipped channels in
front, then a double convolution whose middle has half of the joined channels. Topology and parameter count
are those of PhiML's u_net; the activation is used after both convolutions of a block. With `levels` grids
the cells must be divisible by 2^(levels - 1) along every axis.
"""

from __future__ import annotations

from pydantic import PositiveInt

from toolkit.core.architecture import Architecture, ArchitectureBuilder, Concat, Conv, MaxPool, Upsample
from toolkit.core.options import Options, option
from toolkit.networks.blocks import double_conv, padding, residual
from toolkit.networks.mlp import ActivationKind
from toolkit.networks.plugin import NetworkPlugin, NetworkShape


class UNetOptions(Options):
    """Options of `u_net`."""

    levels: PositiveInt = option(4, description="Number of resolutions.")
    filters: PositiveInt | list[PositiveInt] = option(
        16, description="Filters at each level, or a list with one number per level, finest first."
    )
    batch_norm: bool = option(True, description="Batch normalisation between convolution and activation.")
    activation: ActivationKind = option("relu", description="Pointwise function after each convolution.")
    kernel: PositiveInt = option(3, description="Cells of the kernel along each axis; odd.", units="cells")
    residual_blocks: bool = option(False, description="Residual blocks instead of double convolutions.")


def build(options: UNetOptions, shape: NetworkShape) -> Architecture:
    """The layers for this shape; ValueError if the grid cannot be halved often enough."""
    filters = _filters(options)
    _check_cells(options.levels, shape.cells)
    net = ArchitectureBuilder((shape.inputs, *shape.cells))

    def block(path: str, channels: tuple[int, int, int]) -> str:
        conv = Conv(channels[0], channels[1], options.kernel, padding(shape))
        if options.residual_blocks:
            return residual(net, path, (channels[0], channels[2]), conv, options.batch_norm, options.activation)
        return double_conv(net, path, channels, conv, options.batch_norm, options.activation)

    skips = [block("in", (shape.inputs, filters[0], filters[0]))]
    for i in range(1, options.levels):
        net.add(f"down{i}.pool", MaxPool())
        skips.append(block(f"down{i}", (filters[i - 1], filters[i], filters[i])))
    below = skips.pop()
    for i, skip in enumerate(reversed(skips), start=1):
        joined = filters[-i] + filters[-i - 1]
        upsampled = net.add(f"up{i}.upsample", Upsample(), below)
        net.add(f"up{i}.concat", Concat(), skip, upsampled)
        below = block(f"up{i}", (joined, joined // 2, filters[-i - 1]))
    net.add("out", Conv(filters[0], shape.outputs, kernel=1, padding=padding(shape)))
    return net.build()


def _filters(options: UNetOptions) -> list[int]:
    if isinstance(options.filters, int):
        return [options.filters] * options.levels
    if len(options.filters) != options.levels:
        raise ValueError(f"filters has {len(options.filters)} entries but there are {options.levels} levels")
    return options.filters


def _check_cells(levels: int, cells: tuple[int, ...]) -> None:
    factor = 2 ** (levels - 1)
    if any(n % factor for n in cells):
        most = min((n & -n).bit_length() for n in cells)
        raise ValueError(
            f"a u_net of {levels} levels halves the grid {levels - 1} times: its cells must be divisible "
            f"by {factor} along every axis, not {cells}; use at most {most} levels or other cells"
        )


PLUGIN = NetworkPlugin(
    name="u_net",
    summary="Convolutions on several resolutions with skip connections; sees the whole grid.",
    options=UNetOptions,
    build=build,
    dimensions=(1, 2, 3),
    references=("Ronneberger et al. 2015, U-Net",),
)
