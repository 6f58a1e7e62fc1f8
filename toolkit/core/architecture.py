"""Networks as data: a small graph of named layers that each backend builds with its own modules.

An `Architecture` is a list of nodes in the order of evaluation; each node applies one layer to the results
of earlier nodes, and the last node is the output. Arrays are laid out (batch, channels, *cells), or (batch,
features) where there is no grid; shapes in this module leave the batch out. Parameters are keyed
`<node>.weight`, `<node>.bias`, weights are laid out (out, in, *kernel); a complex weight is two real
parameters, `<node>.weight_re` and `<node>.weight_im`. Shapes are checked when the architecture is made, so a
backend never meets a bad graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

INPUT = "input"
"""Name under which nodes refer to the network's input."""

ACTIVATIONS = ("relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu", "gelu")
Initialisation = Literal["default", "glorot_uniform"]
"""How the weights of dense and convolutional layers are drawn; `networks.initialise` has the formulas."""
Padding = Literal["zeros", "circular", "valid"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dense:
    """y = W x + b on (features,)."""

    inputs: int
    outputs: int
    bias: bool = True
    start: tuple[tuple[float, ...], ...] | Literal["drawn", "zero"] = "drawn"
    """W before training: random, zero, or these rows."""


@dataclass(frozen=True)
class Conv:
    """Convolution, kernel and stride the same along every axis; keeps the cells with an odd kernel and stride 1."""

    inputs: int
    outputs: int
    kernel: int = 3
    padding: Padding = "zeros"
    """What lies beyond the grid, by half of the kernel on each side; `valid`: the kernel stays within the grid."""
    stride: int = 1

    @property
    def margin(self) -> int:
        """Cells beyond the grid on each side."""
        return 0 if self.padding == "valid" else self.kernel // 2


@dataclass(frozen=True)
class BatchNorm:
    """(x - mean) / sqrt(var + EPSILON) * weight + bias per channel.

    In training mean and biased variance are those of the batch over all cells; otherwise the running ones,
    which move by MOMENTUM towards batch mean and unbiased batch variance at each training pass.
    Ioffe & Szegedy 2015, with the conventions of torch.
    """

    features: int


BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1


@dataclass(frozen=True)
class Activation:
    """A pointwise function, one of ACTIVATIONS; gelu is the exact one with erf, leaky_relu has slope 0.01."""

    kind: str = "relu"


@dataclass(frozen=True)
class MaxPool:
    """Largest of every 2 cells along every axis; the cells must be even."""


@dataclass(frozen=True)
class Upsample:
    """Twice the cells by linear interpolation between cell centres, constant beyond the outermost ones.

    Along each axis y[2i] = ¼ x[i-1] + ¾ x[i], y[2i+1] = ¾ x[i] + ¼ x[i+1]: torch's `align_corners=False`.
    """


@dataclass(frozen=True)
class Concat:
    """The channels of all inputs, one after the other."""


@dataclass(frozen=True)
class Add:
    """Sum of two or more inputs of one shape."""


@dataclass(frozen=True)
class Reshape:
    """Another shape with as many entries, in row-major order; (n,) flattens a field to features."""

    shape: Shape


@dataclass(frozen=True)
class SpectralConv:
    """y = F⁻¹[W(k) F(x)(k)]: mixes the channels of each low Fourier mode by a matrix of its own, drops the others.

    Kept are the first `modes` frequencies from 0 along the last axis, which has no negative ones because x is
    real, and along every other axis the first `modes` from 0 and the last `modes` below 0. The complex matrices
    weight_re + i weight_im are laid out (out, in, *frequencies), frequencies as 0, 1, …, -2, -1. The inverse
    transforms the last axis last, where frequencies 0 and n/2 of a real field are real: their imaginary parts
    are dropped. Li et al. 2021, Fourier Neural Operator for Parametric PDEs, Eq. 4 and 5.
    """

    inputs: int
    outputs: int
    modes: tuple[int, ...]
    """Per axis."""

    @property
    def weight_shape(self) -> Shape:
        """(out, in, *frequencies) of the complex weight."""
        return (self.outputs, self.inputs, *(2 * m for m in self.modes[:-1]), self.modes[-1])


@dataclass(frozen=True)
class Coordinates:
    """Where the cells are, one channel per axis, from 0 at the first cell to 1 at the last; x gives the shape alone."""


@dataclass(frozen=True)
class Pad:
    """`cells` cells of zeros behind the last cell of every axis."""

    cells: int


@dataclass(frozen=True)
class Crop:
    """Without the last `cells` cells of every axis."""

    cells: int


Layer = (
    Dense
    | Conv
    | BatchNorm
    | Activation
    | MaxPool
    | Upsample
    | Concat
    | Add
    | Reshape
    | SpectralConv
    | Coordinates
    | Pad
    | Crop
)


@dataclass(frozen=True)
class Node:
    """One layer applied to the results of earlier nodes."""

    name: str
    """Layer path with dots, as `down1.conv2`; unique in the architecture."""
    layer: Layer
    inputs: tuple[str, ...]
    """Names of earlier nodes, or INPUT."""


@dataclass(frozen=True)
class Architecture:
    """A network as data; ValueError with a sentence if the graph or its shapes do not fit."""

    input_shape: Shape
    """(channels, *cells), or (features,)."""
    nodes: tuple[Node, ...]
    initialisation: Initialisation = "default"

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError("a network needs at least one layer")
        node_shapes(self)

    @property
    def output_shape(self) -> Shape:
        """Shape of the last node's result."""
        return node_shapes(self)[self.nodes[-1].name]


class ArchitectureBuilder:
    """Collects nodes; each `add` continues from the node added last unless inputs are named."""

    def __init__(self, input_shape: Shape):
        self._input_shape = input_shape
        self._nodes: list[Node] = []

    def add(self, name: str, layer: Layer, *inputs: str) -> str:
        """Append a node and return its name."""
        self._nodes.append(Node(name, layer, inputs or (self.last,)))
        return name

    @property
    def last(self) -> str:
        """Name of the node added last, or INPUT."""
        return self._nodes[-1].name if self._nodes else INPUT

    def build(self, initialisation: Initialisation = "default") -> Architecture:
        """The checked architecture."""
        return Architecture(self._input_shape, tuple(self._nodes), initialisation)


def node_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Shape of every node's result, without the batch; ValueError names the first node that does not fit."""
    shapes: dict[str, Shape] = {INPUT: tuple(architecture.input_shape)}
    for node in architecture.nodes:
        if node.name in shapes:
            raise ValueError(f"layer {node.name!r}: the name is used twice")
        unknown = [name for name in node.inputs if name not in shapes]
        if unknown or not node.inputs:
            raise ValueError(f"layer {node.name!r}: its inputs must be earlier layers, not {unknown}")
        try:
            shapes[node.name] = _output_shape(node.layer, [shapes[name] for name in node.inputs])
        except ValueError as error:
            raise ValueError(f"layer {node.name!r}: {error}") from None
    return shapes


def _output_shape(layer: Layer, inputs: list[Shape]) -> Shape:
    if isinstance(layer, Concat | Add):
        return _joined_shape(layer, inputs)
    if len(inputs) != 1:
        raise ValueError(f"{type(layer).__name__} takes one input, not {len(inputs)}")
    (shape,) = inputs
    channels, cells = shape[0], shape[1:]
    match layer:
        case Dense():
            if shape != (layer.inputs,):
                raise ValueError(f"Dense takes a vector of {layer.inputs} features, not shape {shape}")
            return (layer.outputs,)
        case Conv():
            _check_conv(layer, shape)
            return (layer.outputs, *((n + 2 * layer.margin - layer.kernel) // layer.stride + 1 for n in cells))
        case BatchNorm(features) if features != channels:
            raise ValueError(f"BatchNorm of {features} channels got {channels}")
        case Activation(kind) if kind not in ACTIVATIONS:
            raise ValueError(f"unknown activation {kind!r}; known: {', '.join(ACTIVATIONS)}")
        case SpectralConv():
            _check_spectral(layer, shape)
            return (layer.outputs, *cells)
        case Reshape(new):
            if math.prod(new) != math.prod(shape):
                raise ValueError(f"shape {shape} has {math.prod(shape)} entries and cannot become {new}")
            return tuple(new)
        case MaxPool() | Upsample() | Coordinates() | Pad() | Crop():
            return _resized_shape(layer, channels, cells)
    return shape


def _resized_shape(layer: MaxPool | Upsample | Coordinates | Pad | Crop, channels: int, cells: Shape) -> Shape:
    if not cells:
        raise ValueError(f"{type(layer).__name__} needs a grid")
    match layer:
        case MaxPool():
            if any(n % 2 for n in cells):
                raise ValueError(f"MaxPool halves the cells, which must be even along every axis, not {cells}")
            return (channels, *(n // 2 for n in cells))
        case Upsample():
            return (channels, *(2 * n for n in cells))
        case Coordinates():
            return (len(cells), *cells)
        case Pad(more):
            if more < 0:
                raise ValueError(f"Pad adds cells, not {more}")
            return (channels, *(n + more for n in cells))
        case Crop(fewer):
            if not 0 <= fewer < min(cells):
                raise ValueError(f"Crop takes {fewer} cells from each axis of {cells}; at least one must be left")
            return (channels, *(n - fewer for n in cells))


def _joined_shape(layer: Concat | Add, inputs: list[Shape]) -> Shape:
    first = inputs[0]
    if isinstance(layer, Add):
        if any(shape != first for shape in inputs):
            raise ValueError(f"Add needs inputs of one shape, not {inputs}")
        return first
    if any(shape[1:] != first[1:] for shape in inputs):
        raise ValueError(f"Concat needs the same cells in all inputs, not {inputs}")
    return (sum(shape[0] for shape in inputs), *first[1:])


def _check_conv(layer: Conv, shape: Shape) -> None:
    channels, cells = shape[0], shape[1:]
    if not 1 <= len(cells) <= 3:
        raise ValueError(f"Conv needs a grid of 1 to 3 dimensions, not shape {shape}")
    if channels != layer.inputs:
        raise ValueError(f"Conv of {layer.inputs} channels got {channels}")
    if layer.padding not in PADDINGS:
        raise ValueError(f"unknown padding {layer.padding!r}; known: {', '.join(PADDINGS)}")
    if layer.padding != "valid" and (layer.kernel < 1 or layer.kernel % 2 == 0):
        raise ValueError(f"the kernel must be odd to keep the cells, not {layer.kernel}")
    if layer.stride < 1 or not 1 <= layer.kernel <= min(cells) + 2 * layer.margin:
        raise ValueError(f"a kernel of {layer.kernel} cells with stride {layer.stride} does not fit into {cells} cells")
    if layer.padding == "circular" and min(cells) < layer.kernel // 2:
        raise ValueError(f"kernel {layer.kernel} wraps around {cells} cells more than once; use a smaller kernel")


def _check_spectral(layer: SpectralConv, shape: Shape) -> None:
    channels, cells = shape[0], shape[1:]
    if not 1 <= len(cells) <= 3:
        raise ValueError(f"SpectralConv needs a grid of 1 to 3 dimensions, not shape {shape}")
    if channels != layer.inputs:
        raise ValueError(f"SpectralConv of {layer.inputs} channels got {channels}")
    if len(layer.modes) != len(cells):
        raise ValueError(f"{len(layer.modes)} numbers of modes for a grid of {len(cells)} dimensions")
    # Along the last axis the real transform has n // 2 + 1 frequencies; elsewhere positive and negative ones
    # must not overlap.
    most = (*(n // 2 for n in cells[:-1]), cells[-1] // 2 + 1)
    if any(not 1 <= m <= limit for m, limit in zip(layer.modes, most, strict=True)):
        raise ValueError(f"{cells} cells have 1 to {most} Fourier modes, not {layer.modes}")


def layer_parameters(layer: Layer, dims: int) -> dict[str, Shape]:
    """Shapes of a layer's parameters by name, in fixed order; `dims` is the number of spatial axes."""
    match layer:
        case Dense():
            bias = {"bias": (layer.outputs,)} if layer.bias else {}
            return {"weight": (layer.outputs, layer.inputs), **bias}
        case Conv():
            return {
                "weight": (layer.outputs, layer.inputs, *([layer.kernel] * dims)),
                "bias": (layer.outputs,),
            }
        case BatchNorm(features):
            return {"weight": (features,), "bias": (features,)}
        case SpectralConv():
            return {"weight_re": layer.weight_shape, "weight_im": layer.weight_shape}
    return {}


def layer_buffers(layer: Layer, dims: int) -> dict[str, Shape]:
    """Shapes of a layer's buffers (running statistics) by name."""
    if isinstance(layer, BatchNorm):
        return {"running_mean": (layer.features,), "running_var": (layer.features,)}
    return {}


def parameter_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Shapes of all parameters by `<node>.<parameter>`, in the order of the nodes."""
    return _collect(architecture, layer_parameters)


def buffer_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Shapes of all buffers by `<node>.<buffer>`, in the order of the nodes."""
    return _collect(architecture, layer_buffers)


def count_parameters(architecture: Architecture) -> int:
    """Number of real scalars among the parameters, two for a complex number; buffers do not count."""
    return sum(math.prod(shape) for shape in parameter_shapes(architecture).values())


def _collect(architecture: Architecture, of_layer: Callable[[Layer, int], Mapping[str, Shape]]) -> dict[str, Shape]:
    shapes = node_shapes(architecture)
    collected = {}
    for node in architecture.nodes:
        dims = len(shapes[node.name]) - 1
        for name, shape in of_layer(node.layer, dims).items():
            collected[f"{node.name}.{name}"] = shape
    return collected


def check_input(architecture: Architecture, shape: Shape, training: bool) -> None:
    """ValueError if an input of this shape, batch first, cannot be fed to the network."""
    if tuple(shape[1:]) != tuple(architecture.input_shape):
        raise ValueError(
            f"the network takes (batch, {', '.join(map(str, architecture.input_shape))}), not {tuple(shape)}"
        )
    if not training:
        return
    shapes = node_shapes(architecture)
    for node in architecture.nodes:
        if isinstance(node.layer, BatchNorm) and shape[0] * math.prod(shapes[node.name][1:]) < 2:
            raise ValueError(
                f"layer {node.name!r}: batch normalisation needs several values per channel in training; "
                "use a larger train.batch_size or switch batch_norm off"
            )
