"""Networks that control: linear feedback, outputs that start at zero, encoders from a grid to values off it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.core.architecture import count_parameters, node_shapes, parameter_shapes
from toolkit.networks import conv_encoder, linear, mlp
from toolkit.networks.initialise import initialise
from toolkit.networks.plugin import NetworkShape


def build(module, shape, **options):
    return module.build(module.PLUGIN.options(**options), shape)


def drawn(architecture, seed=0):
    """Initial parameters."""
    return initialise(architecture, np.random.default_rng(seed))[0]


def output(backend, architecture, params, x):
    natives = {name: backend.array(value, "network") for name, value in params.items()}
    return backend.numpy(backend.network(architecture).apply(natives, {}, backend.array(x, "network"), False)[0])


ENDING_IN_DENSE = [
    (mlp, NetworkShape(3, 2), {"layers": [5]}),
    (mlp, NetworkShape(2, 1, (4, 3)), {"layers": [5, 4], "bias": False}),
    (linear, NetworkShape(3, 2), {"bias": True}),
    (conv_encoder, NetworkShape(2, 3, (9, 6)), {"filters": [4], "dense": [5]}),
]


@pytest.mark.parametrize(("module", "shape", "options"), ENDING_IN_DENSE)
def test_an_output_that_starts_at_zero_is_zero_and_nothing_else_changes(backend, module, shape, options):
    zeroed, plain = (build(module, shape, zero_output=zero, **options) for zero in (True, False))
    params, others = drawn(zeroed), drawn(plain)
    assert list(params) == list(others)
    for name, value in params.items():
        expected = np.zeros_like(value) if name == "out.weight" else others[name]
        assert np.array_equal(value, expected), name
    assert np.any(others["out.weight"])
    x = np.random.default_rng(1).standard_normal((2, *zeroed.input_shape))
    assert not np.any(output(backend, zeroed, params, x))
    assert np.any(output(backend, plain, others, x))


def test_an_mlp_without_bias_keeps_zero_and_the_names_of_its_weights(backend):
    architecture = build(mlp, NetworkShape(3, 2), layers=[5, 4], bias=False, activation="tanh")
    assert list(parameter_shapes(architecture)) == ["dense0.weight", "dense1.weight", "out.weight"]
    assert not np.any(output(backend, architecture, drawn(architecture), np.zeros((1, 3))))
    # The weights are those of the same network with biases.
    full = drawn(build(mlp, NetworkShape(3, 2), layers=[5, 4], activation="tanh"))
    assert all(np.array_equal(value, full[name]) for name, value in drawn(architecture).items())


def test_published_sizes_of_a_controller_of_the_cart_pole():
    """4 → 100 → 100 → 1 with biases, and 200 weights more per pole."""
    sizes = [count_parameters(build(mlp, NetworkShape(2 * (p + 1), 1), layers=[100, 100])) for p in (1, 2)]
    assert sizes == [10_701, 10_901]


# --- linear -------------------------------------------------------------------------------------------------------


def test_linear_is_a_product_with_the_given_weights(backend):
    gains = [[1.0, -2.0, 0.5], [0.0, 3.0, 4.0]]
    architecture = build(linear, NetworkShape(3, 2), weight=gains)
    params = drawn(architecture)
    assert list(params) == ["out.weight"]
    assert np.array_equal(params["out.weight"], gains)
    x = np.random.default_rng(0).standard_normal((4, 3))
    # One product of three terms.
    assert output(backend, architecture, params, x) == pytest.approx(x @ np.transpose(gains), abs=1e-15)


def test_linear_on_a_grid_maps_all_values_to_all_values(backend):
    architecture = build(linear, NetworkShape(2, 1, (3, 2)), bias=True)
    params = drawn(architecture)
    assert {name: value.shape for name, value in params.items()} == {"out.weight": (6, 12), "out.bias": (6,)}
    x = np.random.default_rng(0).standard_normal((4, 2, 3, 2))
    expected = (x.reshape(4, 12) @ params["out.weight"].T).reshape(4, 1, 3, 2)
    assert output(backend, architecture, params, x) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": [[1.0, 2.0]]}, r"weight needs 2 rows \(values given\) of 2 numbers \(values seen\), it has 1 rows"),
        ({"weight": [[1.0, 2.0], [1.0]]}, r"its row 2 has 1 numbers"),
        ({"weight": [[1.0, 2.0], [1.0, 2.0]], "zero_output": True}, "give one of them"),
    ],
)
def test_weights_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(linear, NetworkShape(2, 2), **options)


# --- encoder ------------------------------------------------------------------------------------------------------


def test_the_published_controller_of_the_quantum_system():
    """60 filters over (3 points x 2 channels), 60 over 3 x 60, both with stride 2, then 420 → 1."""
    architecture = build(conv_encoder, NetworkShape(2, 1, (32,)), initialisation="glorot_uniform")
    assert count_parameters(architecture) == 11_701
    shapes = node_shapes(architecture)
    assert [shapes[name] for name in ("conv0", "conv1", "flatten", "out")] == [(60, 15), (60, 7), (420,), (1,)]
    assert [count_parameters(build(conv_encoder, NetworkShape(2, n, (32,)))) - 11_701 for n in (1, 3)] == [0, 842]
    # Keras' limits count the cells of the kernel on both sides; the last kernel has a standard deviation of 0.07.
    weights = drawn(architecture)
    bounds = {"conv0": 6 / (3 * (2 + 60)), "conv1": 6 / (3 * (60 + 60)), "out": 6 / (420 + 1)}
    for name, bound in bounds.items():
        # The largest of 360 uniform numbers is within 3 % of the bound but for one seed in 1e4.
        assert 0.97 * math.sqrt(bound) < np.abs(weights[f"{name}.weight"]).max() <= math.sqrt(bound)
    assert np.std(weights["out.weight"]) == pytest.approx(0.07, abs=0.006)


def test_an_encoder_is_convolutions_then_dense_layers(backend):
    """Against sums written out in NumPy, on a grid that is not square."""
    architecture = build(conv_encoder, NetworkShape(2, 3, (9, 7)), filters=[3, 2], dense=[4])
    rng = np.random.default_rng(1)
    params = {name: rng.standard_normal(dims) for name, dims in parameter_shapes(architecture).items()}
    x = rng.standard_normal((2, 2, 9, 7))

    def conv(y, name):
        windows = np.lib.stride_tricks.sliding_window_view(y, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
        bias = params[f"{name}.bias"][:, None, None]
        return np.tanh(np.einsum("bcxyij,ocij->boxy", windows, params[f"{name}.weight"]) + bias)

    flat = conv(conv(x, "conv0"), "conv1").reshape(2, -1)
    hidden = np.tanh(flat @ params["dense0.weight"].T + params["dense0.bias"])
    expected = hidden @ params["out.weight"].T + params["out.bias"]
    # Sums of at most 27 terms.
    assert output(backend, architecture, params, x) == pytest.approx(expected, abs=1e-13)


def test_a_grid_too_small_for_the_convolutions_is_refused():
    with pytest.raises(
        ValueError, match=r"layer 'conv1': a kernel of 3 cells with stride 2 does not fit into \(3, 2\)"
    ):
        build(conv_encoder, NetworkShape(2, 3, (7, 5)))


def test_same_padding_goes_around_a_periodic_grid_and_adds_zeros_elsewhere():
    cells = (9, 6)
    for periodic, expected in ((True, "circular"), (False, "zeros")):
        shape = NetworkShape(1, 1, cells, periodic)
        architecture = build(conv_encoder, shape, padding="same", stride=3, filters=[2])
        assert architecture.nodes[0].layer.padding == expected
        assert node_shapes(architecture)["conv0"] == (2, 3, 2)
