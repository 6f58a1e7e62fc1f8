"""The shipped topologies: counts and numbers of PhiML's networks, sizes refused, initial weights."""

import math

import numpy as np
import pytest
import torch
from phiml import math as phiml_math
from phiml.backend.torch import nets as phiml_nets
from scipy.special import erf

from toolkit.core.architecture import ArchitectureBuilder, Conv, buffer_shapes, count_parameters, parameter_shapes
from toolkit.core.torch_networks import TorchNetwork
from toolkit.networks import conv_net, fno, mlp, res_net, u_net
from toolkit.networks.initialise import initialise
from toolkit.networks.plugin import NetworkShape

PLUGINS = {module.PLUGIN.name: module.PLUGIN for module in (mlp, conv_net, fno, res_net, u_net)}


def build(name, shape, **options):
    plugin = PLUGINS[name]
    return plugin.build(plugin.options(**options), shape)


@pytest.mark.parametrize(
    ("name", "shape", "options", "count"),
    [
        ("u_net", NetworkShape(1, 1, (64, 64), periodic=True), {}, 37_697),
        ("u_net", NetworkShape(2, 2, (128, 128)), {"levels": 5}, 49_570),
        ("mlp", NetworkShape(2, 2), {"layers": [32, 64, 32]}, 4_354),
        ("mlp", NetworkShape(1, 1), {"layers": [16, 64, 16], "activation": "sigmoid"}, 2_177),
    ],
)
def test_published_parameter_counts(name, shape, options, count):
    assert count_parameters(build(name, shape, **options)) == count


@pytest.mark.parametrize("padding", [0, 9])
def test_published_parameter_count_of_the_fourier_neural_operator(padding):
    """1 188 353 with a complex number counted once, as the publication counts; 2 368 001 real numbers."""
    shape = NetworkShape(1, 1, (64, 64), periodic=True)
    architecture = build("fno", shape, modes=12, width=32, layers=4, head=128, padding=padding)
    real = count_parameters(architecture)
    shapes = parameter_shapes(architecture)
    imaginary = sum(math.prod(s) for path, s in shapes.items() if path.endswith("weight_im"))
    assert imaginary == 4 * 32 * 32 * 2 * 12 * 12
    assert real - imaginary == 1_188_353
    assert real == 2_368_001
    # The published network is the default, but for the padding on a periodic grid.
    assert parameter_shapes(build("fno", shape)) == shapes
    assert any(n.name == "pad" for n in build("fno", NetworkShape(1, 1, (64, 64))).nodes)


def test_fno_is_the_published_network():
    """Lift of (x, coordinates), zeros behind the grid, layers with gelu between them, crop, head; in NumPy."""
    shape, (m1, m2), width, pad = NetworkShape(2, 3, (7, 8)), (3, 4), 5, 2
    architecture = build("fno", shape, modes=[m1, m2], width=width, layers=3, head=6, padding=pad)
    rng = np.random.default_rng(0)
    params = {k: rng.standard_normal(dims) for k, dims in parameter_shapes(architecture).items()}
    x = rng.standard_normal((4, 2, 7, 8))

    def pointwise(name, v):
        weight, bias = params[f"{name}.weight"][:, :, 0, 0], params[f"{name}.bias"]
        return np.einsum("oi,bixy->boxy", weight, v) + bias[:, None, None]

    def gelu(v):
        return v * 0.5 * (1 + erf(v / math.sqrt(2)))

    where = np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 8), indexing="ij")
    v = pointwise("lift", np.concatenate([x, np.broadcast_to(where, (4, 2, 7, 8))], axis=1))
    v = np.pad(v, ((0, 0), (0, 0), (0, pad), (0, pad)))
    for i in range(3):
        weight = params[f"layer{i}.spectral.weight_re"] + 1j * params[f"layer{i}.spectral.weight_im"]
        spectrum = np.fft.rfft2(v)
        mixed = np.zeros((4, width, *spectrum.shape[2:]), complex)
        for part in (slice(None, m1), slice(-m1, None)):
            mixed[:, :, part, :m2] = np.einsum("bixy,oixy->boxy", spectrum[:, :, part, :m2], weight[:, :, part])
        v = np.fft.irfft2(mixed, s=v.shape[2:]) + pointwise(f"layer{i}.pointwise", v)
        v = gelu(v) if i < 2 else v
    expected = pointwise("out", gelu(pointwise("head", v[:, :, :7, :8])))

    ours, _ = TorchNetwork(architecture).apply(
        {k: torch.tensor(p) for k, p in params.items()}, {}, torch.tensor(x), False
    )
    # Round-off of three layers of sums over at most 90 cells and 5 channels.
    assert np.max(np.abs(ours.numpy() - expected)) < 1e-12 * np.max(np.abs(expected))


def test_fno_takes_the_modes_that_the_grid_has():
    small = parameter_shapes(build("fno", NetworkShape(1, 1, (10, 30), periodic=True)))
    assert small["layer0.spectral.weight_re"] == (32, 32, 10, 12)
    chosen = parameter_shapes(build("fno", NetworkShape(1, 1, (10, 30), periodic=True), modes=[2, 15], width=4))
    assert chosen["layer0.spectral.weight_re"] == (4, 4, 4, 15)
    with pytest.raises(ValueError, match=r"\(12, 12\) Fourier modes need .* not \(10, 30\); use at most 5 modes"):
        build("fno", NetworkShape(1, 1, (10, 30), periodic=True), modes=12)
    assert build("fno", NetworkShape(1, 1, (10, 30), periodic=True), modes=12, padding=14).output_shape == (1, 10, 30)
    with pytest.raises(ValueError, match="modes has 3 entries but the grid has 2 dimensions"):
        build("fno", NetworkShape(1, 1, (16, 16)), modes=[2, 2, 2])


def test_fno_weights_serve_every_resolution():
    """Finer samples of one field give the same output at the points in common.

    With one Fourier layer all is linear up to the pointwise head, so that nothing is aliased; the coordinates, which
    reach 1 at the last cell of each grid, are left out.
    """
    outputs = {}
    for n in (16, 32):
        shape = NetworkShape(1, 1, (n,), periodic=True)
        architecture = build("fno", shape, modes=3, width=4, layers=1, head=5)
        params, _ = initialise(architecture, np.random.default_rng(0))
        params = {k: torch.tensor(v) for k, v in params.items()}
        params["lift.weight"][:, 1:] = 0
        angle = 2 * np.pi * np.arange(n) / n
        x = torch.tensor(np.sin(angle) + 0.3 * np.cos(2 * angle))[None, None]
        outputs[n] = TorchNetwork(architecture).apply(params, {}, x, False)[0][0, 0, :: n // 16]
    assert outputs[16].std() > 1e-3
    # Round-off of transforms of 32 cells.
    np.testing.assert_allclose(outputs[16], outputs[32], rtol=1e-12)


def test_initial_weights_of_spectral_convolutions():
    architecture = build("fno", NetworkShape(1, 1, (16, 16), periodic=True), width=8, modes=4)
    params, _ = initialise(architecture, np.random.default_rng(3))
    for part in ("weight_re", "weight_im"):
        value = 8 * 8 * params[f"layer1.spectral.{part}"]
        assert value.min() >= 0
        assert value.max() < 1
        # U(0, 1) of 2048 numbers: four standard errors of the mean are 0.026.
        assert value.mean() == pytest.approx(0.5, abs=0.026)
    assert np.abs(params["layer1.pointwise.weight"]).max() <= 8**-0.5
    assert not params["lift.bias"].any()


def in_order_of_names(state):
    """PhiML registers up and down blocks in turns; ours come in the order of evaluation."""
    ups = [k for k in state if k.startswith("up")]
    return [k for k in state if k not in ups and not k.startswith("outc")] + ups + [k for k in state if "outc" in k]


@pytest.mark.parametrize(
    ("shape", "options", "theirs"),
    [
        (NetworkShape(2, 3), ("mlp", {"layers": [5, 4], "batch_norm": True, "activation": "tanh"}),
         lambda: phiml_nets.mlp(2, 3, [5, 4], batch_norm=True, activation="tanh")),
        (NetworkShape(2, 3, (6, 4), periodic=True), ("conv_net", {"layers": [5, 4], "batch_norm": True}),
         lambda: phiml_nets.conv_net(2, 3, [5, 4], batch_norm=True, periodic=True)),
        (NetworkShape(2, 3, (7,)), ("res_net", {"layers": [5, 5]}),
         lambda: phiml_nets.res_net(2, 3, [5, 5], in_spatial=1)),
        (NetworkShape(2, 3, (8, 4)), ("u_net", {"levels": 3, "filters": [4, 5, 6]}),
         lambda: phiml_nets.u_net(2, 3, 3, filters=[4, 5, 6])),
    ],
    ids=["mlp", "conv_net", "res_net", "u_net"],
)  # fmt: skip
def test_the_same_function_as_phiml(shape, options, theirs):
    architecture = build(options[0], shape, **options[1])
    phiml = theirs().double()
    state = {k: v.clone() for k, v in phiml.state_dict().items()}
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((3, *architecture.input_shape)))
    params = {}
    if options[0] == "res_net":
        # PhiML registers the skip convolution before the two of the block.
        keys = ["Res_in.conv1", "Res_in.conv2", "Res_in.sample_input", "Res1.conv1", "Res1.conv2", "Res_out"]
        keys = [f"{k}.{part}" for k in keys for part in ("weight", "bias")]
    else:
        keys = [k for k in in_order_of_names(state) if "running" not in k and "num_batches" not in k]
    for (path, dims), key in zip(parameter_shapes(architecture).items(), keys, strict=True):
        assert tuple(state[key].shape) == dims
        state[key] = torch.tensor(rng.standard_normal(dims))
        params[path] = state[key]
    phiml.load_state_dict(state)
    buffers = {k: torch.tensor(v) for k, v in initialise(architecture, rng)[1].items()}

    for training in (True, False):
        ours, after = TorchNetwork(architecture).apply(params, buffers, x, training)
        phiml.load_state_dict(state)
        with phiml_math.precision(64):
            expected = phiml.train(training)(x)
        # The same torch operations in the same order.
        np.testing.assert_allclose(ours.detach(), expected.detach(), rtol=1e-13, atol=1e-13)
        if training:
            running = [v for k, v in phiml.state_dict().items() if "running" in k]
            theirs_sum = sum(float(v.sum()) for v in running)
            assert sum(float(v.sum()) for v in after.values()) == pytest.approx(theirs_sum, rel=1e-12, abs=1e-12)


def test_every_topology_keeps_the_grid_and_the_channels():
    for name, plugin in PLUGINS.items():
        for d in plugin.dimensions:
            for periodic in (True, False):
                shape = NetworkShape(3, 2, (8, 16, 8)[:d], periodic)
                architecture = plugin.build(plugin.options(), shape)
                assert architecture.input_shape == (3, *shape.cells), name
                assert architecture.output_shape == (2, *shape.cells), name


def test_u_net_refuses_what_it_cannot_halve():
    with pytest.raises(ValueError, match=r"divisible by 8 along every axis, not \(64, 36\); use at most 3 levels"):
        build("u_net", NetworkShape(1, 1, (64, 36)))
    assert build("u_net", NetworkShape(1, 1, (64, 36)), levels=3).output_shape == (1, 64, 36)
    with pytest.raises(ValueError, match="filters has 2 entries but there are 4 levels"):
        build("u_net", NetworkShape(1, 1, (64,)), filters=[8, 16])


def test_u_net_with_residual_blocks_counts_as_much_as_with_double_convolutions():
    # Equal channels need no skip convolution, and a joined block then has one convolution more.
    shape = NetworkShape(1, 1, (8, 8))
    plain = count_parameters(build("u_net", shape, levels=1, filters=1))
    assert count_parameters(build("u_net", shape, levels=1, filters=1, residual_blocks=True)) == plain


def test_initial_weights():
    architecture = build("u_net", NetworkShape(2, 1, (16, 16)), filters=16)
    params, buffers = initialise(architecture, np.random.default_rng(7))
    again, _ = initialise(architecture, np.random.default_rng(7))
    assert list(params) == list(parameter_shapes(architecture))
    assert {k: v.shape for k, v in buffers.items()} == buffer_shapes(architecture)
    for path, value in params.items():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, again[path])
        if path.endswith("bias"):
            assert not value.any()
        elif "norm" in path:
            assert (value == 1).all()
        else:
            bound = 1 / math.sqrt(math.prod(value.shape[1:]))
            assert np.abs(value).max() <= bound
            # Standard deviation of U(-b, b) is b/√3; 10 % is four standard errors of the smallest tensor.
            if value.size > 500:
                assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert all((v == (1 if "var" in k else 0)).all() for k, v in buffers.items())


def test_glorot_uniform_weights():
    shape = NetworkShape(30, 50)
    params, _ = initialise(build("mlp", shape, layers=[40], initialisation="glorot_uniform"), np.random.default_rng(3))
    for path, (fan_in, fan_out) in {"dense0": (30, 40), "out": (40, 50)}.items():
        weight, bound = params[f"{path}.weight"], math.sqrt(6 / (fan_in + fan_out))
        # The largest of 1200 uniform numbers is within 1 % of the bound but for one seed in 1e5.
        assert 0.99 * bound < np.abs(weight).max() <= bound
        # Variance 2 / (fan_in + fan_out); 10 % is four standard errors.
        assert weight.std() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.1)
        assert not params[f"{path}.bias"].any()
    # The same random numbers, stretched.
    default, _ = initialise(build("mlp", shape, layers=[40]), np.random.default_rng(3))
    ratio = math.sqrt(6 / 70) * math.sqrt(30)
    np.testing.assert_allclose(params["dense0.weight"], ratio * default["dense0.weight"], rtol=0, atol=1e-15)


def test_glorot_counts_the_cells_of_a_kernel_on_both_sides():
    net = ArchitectureBuilder((2, 8, 8))
    net.add("conv", Conv(2, 300, kernel=3))
    params, _ = initialise(net.build("glorot_uniform"), np.random.default_rng(0))
    bound = math.sqrt(6 / (9 * (2 + 300)))
    assert 0.99 * bound < np.abs(params["conv.weight"]).max() <= bound
