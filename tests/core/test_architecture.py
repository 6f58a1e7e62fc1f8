"""Architectures check their own graph and count what they hold."""

import pytest

from toolkit.core.architecture import (
    INPUT,
    Activation,
    Add,
    Architecture,
    ArchitectureBuilder,
    BatchNorm,
    Concat,
    Conv,
    Coordinates,
    Crop,
    Dense,
    MaxPool,
    Node,
    Pad,
    Reshape,
    SpectralConv,
    Upsample,
    buffer_shapes,
    check_input,
    count_parameters,
    parameter_shapes,
)


def small() -> ArchitectureBuilder:
    net = ArchitectureBuilder((2, 4, 6))
    net.add("conv", Conv(2, 3))
    net.add("norm", BatchNorm(3))
    net.add("pool", MaxPool())
    net.add("up", Upsample())
    net.add("joined", Concat(), "up", INPUT)
    net.add("flat", Reshape((5 * 24,)))
    net.add("out", Dense(120, 7))
    return net


def test_shapes_and_counts_follow_from_the_layers():
    architecture = small().build()
    assert parameter_shapes(architecture) == {
        "conv.weight": (3, 2, 3, 3),
        "conv.bias": (3,),
        "norm.weight": (3,),
        "norm.bias": (3,),
        "out.weight": (7, 120),
        "out.bias": (7,),
    }
    assert buffer_shapes(architecture) == {"norm.running_mean": (3,), "norm.running_var": (3,)}
    assert count_parameters(architecture) == 54 + 3 + 6 + 840 + 7
    assert architecture.output_shape == (7,)


def test_spectral_layers_count_real_and_imaginary_parts():
    net = ArchitectureBuilder((3, 5, 6, 7))
    net.add("pad", Pad(1))
    net.add("where", Coordinates())
    net.add("joined", Concat(), "pad", "where")
    net.add("spectral", SpectralConv(6, 2, (3, 2, 5)))
    net.add("crop", Crop(1))
    architecture = net.build()
    weights = (2, 6, 6, 4, 5)
    assert parameter_shapes(architecture) == {"spectral.weight_re": weights, "spectral.weight_im": weights}
    assert count_parameters(architecture) == 2 * 2 * 6 * 6 * 4 * 5
    assert architecture.output_shape == (2, 5, 6, 7)


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        ((2, 5), MaxPool(), "must be even"),
        ((2,), MaxPool(), "needs a grid"),
        ((2,), Upsample(), "needs a grid"),
        ((2, 4), Conv(3, 1), "Conv of 3 channels got 2"),
        ((2, 4), Conv(2, 1, kernel=4), "kernel must be odd"),
        ((2, 1), Conv(2, 1, kernel=5, padding="circular"), "wraps around"),
        ((2, 4), Conv(2, 1, padding="reflect"), "known: zeros, circular, valid"),  # type: ignore[arg-type]
        ((2, 9, 4), Conv(2, 1, kernel=5, padding="valid"), r"5 cells with stride 1 does not fit into \(9, 4\) cells"),
        ((2, 9), Conv(2, 1, stride=0), "stride 0 does not fit"),
        ((2, 4), Conv(2, 1, kernel=0, padding="valid"), "kernel of 0 cells"),
        ((2,), Conv(2, 1), "1 to 3 dimensions"),
        ((3,), Dense(2, 1), "2 features"),
        ((3, 4), BatchNorm(2), "2 channels got 3"),
        ((3,), Activation("softmax"), "known: relu"),
        ((3, 4), Reshape((11,)), "12 entries"),
        ((2,), SpectralConv(2, 1, ()), "1 to 3 dimensions"),
        ((3, 8), SpectralConv(2, 1, (2,)), "SpectralConv of 2 channels got 3"),
        ((2, 8, 8), SpectralConv(2, 1, (2,)), "1 numbers of modes for a grid of 2"),
        ((2, 7, 8), SpectralConv(2, 1, (4, 2)), r"1 to \(3, 5\) Fourier modes, not \(4, 2\)"),
        ((2, 8, 8), SpectralConv(2, 1, (4, 6)), r"1 to \(4, 5\) Fourier modes"),
        ((2, 8, 8), SpectralConv(2, 1, (0, 1)), "Fourier modes, not"),
        ((2,), Coordinates(), "Coordinates needs a grid"),
        ((2, 4), Pad(-1), "Pad adds cells, not -1"),
        ((2, 4, 3), Crop(3), "at least one must be left"),
    ],
)
def test_layers_that_do_not_fit_are_refused(shape, layer, message):
    with pytest.raises(ValueError, match=rf"layer 'a': .*{message}"):
        Architecture(shape, (Node("a", layer, (INPUT,)),))


@pytest.mark.parametrize(
    ("layer", "cells", "expected"),
    [
        (Conv(2, 3, padding="valid"), (9, 4), (7, 2)),
        (Conv(2, 3, 3, "valid", 2), (32, 6), (15, 2)),
        (Conv(2, 3, 3, "valid", 2), (15, 3), (7, 1)),
        (Conv(2, 3, 4, "valid", 3), (11, 4), (3, 1)),
        (Conv(2, 3, 3, "zeros", 2), (32, 7), (16, 4)),
        (Conv(2, 3, 5, "circular", 3), (9, 5), (3, 2)),
    ],
)
def test_strides_and_valid_kernels_leave_fewer_cells(layer, cells, expected):
    assert Architecture((2, *cells), (Node("a", layer, (INPUT,)),)).output_shape == (3, *expected)


def test_a_layer_without_bias_has_one_parameter():
    architecture = Architecture((4,), (Node("a", Dense(4, 2, bias=False), (INPUT,)),))
    assert parameter_shapes(architecture) == {"a.weight": (2, 4)}
    assert count_parameters(architecture) == 8


def test_graphs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        Architecture((2,), ())
    with pytest.raises(ValueError, match="used twice"):
        Architecture((2,), (Node("a", Dense(2, 2), (INPUT,)), Node("a", Dense(2, 2), ("a",))))
    with pytest.raises(ValueError, match="earlier layers"):
        Architecture((2,), (Node("a", Dense(2, 2), ("b",)),))
    with pytest.raises(ValueError, match="takes one input, not 2"):
        Architecture((2,), (Node("a", Dense(2, 2), (INPUT, INPUT)),))
    net = small()
    net.add("sum", Add(), "up", INPUT)
    with pytest.raises(ValueError, match="one shape"):
        net.build()


def test_inputs_are_checked():
    architecture = small().build()
    check_input(architecture, (1, 2, 4, 6), training=True)
    with pytest.raises(ValueError, match=r"takes \(batch, 2, 4, 6\), not \(3, 2, 6, 4\)"):
        check_input(architecture, (3, 2, 6, 4), training=False)
    dense = Architecture((3,), (Node("norm", BatchNorm(3), (INPUT,)),))
    check_input(dense, (1, 3), training=False)
    with pytest.raises(ValueError, match=r"larger train\.batch_size"):
        check_input(dense, (1, 3), training=True)
