"""Networks are one function on both backends: values, gradients, running statistics, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import phiml.backend.jax  # noqa: F401  (switches JAX to 64 bit, as the JAX backend does)
import pytest
import torch

from toolkit.core.architecture import (
    ACTIVATIONS,
    Activation,
    Architecture,
    ArchitectureBuilder,
    Conv,
    Coordinates,
    Crop,
    Pad,
    SpectralConv,
    Upsample,
    parameter_shapes,
)
from toolkit.core.jax_networks import JaxNetwork
from toolkit.core.torch_networks import TorchNetwork
from toolkit.networks import conv_encoder, conv_net, fno, linear, mlp, res_net, u_net
from toolkit.networks.initialise import initialise
from toolkit.networks.plugin import NetworkShape

# Optimising the compiled program takes longer than all else here and is not what is tested.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def make(module, shape, **options):
    return module.build(module.PLUGIN.options(**options), NetworkShape(*shape))


ARCHITECTURES = {
    "u_net-1d": lambda: make(u_net, (2, 1, (12,), True), levels=3, filters=[2, 3, 2], activation="silu"),
    "u_net-2d": lambda: make(u_net, (1, 2, (8, 4), False), levels=2, filters=3),
    "u_net-3d": lambda: make(
        u_net, (1, 1, (4, 2, 6), True), levels=2, filters=2, residual_blocks=True, batch_norm=False
    ),
    "res_net": lambda: make(res_net, (2, 1, (5, 3), True), layers=[3], kernel=5, batch_norm=True),
    "conv_net": lambda: make(conv_net, (2, 1, (7,), False), layers=[3, 4], activation="tanh"),
    "fno-1d": lambda: make(fno, (2, 1, (9,), False), modes=3, width=3, layers=2, head=4, padding=2),
    "fno-2d": lambda: make(fno, (1, 2, (7, 6), True), modes=[3, 2], width=3, layers=3, head=4),
    "fno-3d": lambda: make(fno, (1, 1, (4, 5, 6), False), modes=[3, 2, 3], width=2, layers=2, head=3, padding=2),
    "mlp-grid": lambda: make(mlp, (1, 2, (3, 4)), layers=[6, 5], batch_norm=True, activation="silu"),
    "mlp-without-bias": lambda: make(mlp, (3, 2), layers=[5], bias=False, zero_output=True, activation="tanh"),
    "linear": lambda: make(linear, (2, 3), weight=[[1.0, 2.0], [0.0, -1.0], [0.5, 0.0]]),
    "linear-grid": lambda: make(linear, (1, 2, (3, 4)), bias=True),
    "encoder-1d": lambda: make(conv_encoder, (2, 1, (32,), False), filters=[4, 3]),
    "encoder-2d": lambda: make(conv_encoder, (2, 3, (9, 6), True), padding="same", stride=3, filters=[3], dense=[4]),
    "encoder-zeros": lambda: make(conv_encoder, (1, 2, (8, 5), False), padding="same", kernel=5, filters=[3, 2]),
    "encoder-3d": lambda: make(conv_encoder, (1, 1, (5, 4, 6), True), kernel=2, filters=[2], dense=[3, 2]),
}


def numbers(architecture, batch=3):
    """Weights away from their special initial values, an input and a weight for the output."""
    rng = np.random.default_rng(1)
    params, buffers = initialise(architecture, rng)
    params = {k: v + 0.2 * rng.standard_normal(v.shape) for k, v in params.items()}
    buffers = {k: v + 0.3 * rng.random(v.shape) for k, v in buffers.items()}
    x = rng.standard_normal((batch, *architecture.input_shape))
    return params, buffers, x, rng.standard_normal((batch, *architecture.output_shape))


def on_torch(architecture, training, params, buffers, x, weight):
    """(output, buffers, ∂/∂x, ∂/∂params) of the weighted sum of the output."""
    params = {k: torch.tensor(v, requires_grad=True) for k, v in params.items()}
    x = torch.tensor(x, requires_grad=True)
    y, after = TorchNetwork(architecture).apply(params, {k: torch.tensor(v) for k, v in buffers.items()}, x, training)
    gx, *gp = torch.autograd.grad((y * torch.tensor(weight)).sum(), [x, *params.values()])
    return (
        y.detach().numpy(),
        {k: v.numpy() for k, v in after.items()},
        gx.numpy(),
        dict(zip(params, gp, strict=True)),
    )


def on_jax(architecture, training, params, buffers, x, weight, lines_as_products=False):
    """The same."""
    network = JaxNetwork(architecture, lines_as_products)

    def value(params, x, buffers):
        y, after = network.apply(params, buffers, x, training)
        return jnp.sum(y * weight), (y, after)

    arguments = jax.tree.map(jnp.asarray, (params, x, buffers))
    gradient = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True)).lower(*arguments).compile(FAST_COMPILE)
    (gp, gx), (y, after) = gradient(*arguments)
    return y, after, gx, gp


def distance(a, b):
    """Largest difference over largest magnitude."""
    a, b = np.asarray(a), np.asarray(b)
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)


# Without batch normalisation training and evaluation are one function; compiling them twice shows nothing.
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("u_net-1d", True),
        ("u_net-2d", False),
        ("u_net-2d", True),
        ("u_net-3d", False),
        ("res_net", False),
        ("res_net", True),
        ("conv_net", False),
        ("fno-1d", False),
        ("fno-2d", False),
        ("fno-3d", False),
        ("mlp-grid", False),
        ("mlp-grid", True),
        ("mlp-without-bias", False),
        ("linear", False),
        ("linear-grid", False),
        ("encoder-1d", False),
        ("encoder-2d", False),
        ("encoder-zeros", False),
        ("encoder-3d", False),
    ],
)
def test_both_backends_compute_one_function(name, training):
    architecture = ARCHITECTURES[name]()
    data = numbers(architecture)
    y, after, gx, gp = on_torch(architecture, training, *data)
    jy, jafter, jgx, jgp = on_jax(architecture, training, *data)

    # Round-off of sums over at most a few hundred terms; measured 2e-15.
    assert y.shape == data[3].shape
    assert distance(y, jy) < 1e-12
    assert distance(gx, jgx) < 1e-12
    assert list(after) == list(data[1])
    for path in after:
        assert distance(after[path], jafter[path]) < 1e-12
        assert (distance(after[path], data[1][path]) > 1e-3) == training
    # Against the largest gradient: a bias before batch normalisation has gradient zero but for round-off.
    scale = max(float(g.abs().max()) for g in gp.values())
    for path, g in gp.items():
        assert np.abs(g.numpy() - np.asarray(jgp[path])).max() < 1e-12 * scale, path


def test_running_statistics_are_those_of_torch():
    architecture = make(mlp, (3, 1), layers=[4], batch_norm=True)
    params, buffers, x, _ = numbers(architecture, batch=5)
    hidden = np.maximum(x @ params["dense0.weight"].T + params["dense0.bias"], 0)
    for after in (on_torch, on_jax):
        _, result, _, _ = after(architecture, True, params, buffers, x, np.ones((5, 1)))
        mean = 0.9 * buffers["norm0.running_mean"] + 0.1 * hidden.mean(0)
        var = 0.9 * buffers["norm0.running_var"] + 0.1 * hidden.var(0, ddof=1)
        # Five terms: round-off.
        np.testing.assert_allclose(result["norm0.running_mean"], mean, rtol=1e-13)
        np.testing.assert_allclose(result["norm0.running_var"], var, rtol=1e-13)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_agree_with_gradients_at_zero_and_far_out(kind):
    net = ArchitectureBuilder((9,))
    net.add("f", Activation(kind))
    x = np.array([[-40.0, -3.0, -0.5, -1e-9, 0.0, 1e-9, 0.5, 3.0, 40.0]])
    y, _, gx, _ = on_torch(net.build(), False, {}, {}, x, np.ones_like(x))
    jy, _, jgx, _ = on_jax(net.build(), False, {}, {}, x, np.ones_like(x))
    # Two implementations of erf and exp: a few units in the last place; the far tail of gelu only absolutely.
    np.testing.assert_allclose(y, jy, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(gx, jgx, rtol=1e-13, atol=1e-15)


def test_upsampling_interpolates_between_cell_centres():
    architecture = Architecture((1, 3), tuple(_single("up", Upsample(), (1, 3))))
    x = np.array([[[0.0, 4.0, 8.0]]])
    expected = [[[0.0, 1.0, 3.0, 5.0, 7.0, 8.0]]]
    np.testing.assert_array_equal(on_torch(architecture, False, {}, {}, x, np.ones((1, 1, 6)))[0], expected)
    np.testing.assert_array_equal(on_jax(architecture, False, {}, {}, x, np.ones((1, 1, 6)))[0], expected)


def _single(name, layer, shape):
    net = ArchitectureBuilder(shape)
    net.add(name, layer)
    return net.build().nodes


@pytest.mark.parametrize(("padding", "kernel", "stride"), [("valid", 4, 3), ("zeros", 3, 2), ("circular", 5, 2)])
def test_strided_convolutions_are_products_with_parts_of_the_grid(padding, kernel, stride):
    """In NumPy, one place of the kernel after the other, on a grid that is not square."""
    layer = Conv(2, 3, kernel, padding, stride)
    architecture = Architecture((2, 11, 6), _single("c", layer, (2, 11, 6)))
    params, _, x, weight = numbers(architecture)
    params["c.bias"] = np.arange(3.0)
    around = [(0, 0), (0, 0), *[(layer.margin, layer.margin)] * 2]
    wide = np.pad(x, around, mode="wrap" if padding == "circular" else "constant")
    expected = np.empty((len(x), *architecture.output_shape))
    for i, j in np.ndindex(*architecture.output_shape[1:]):
        part = wide[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        expected[:, :, i, j] = np.tensordot(part, params["c.weight"], ((1, 2, 3), (1, 2, 3))) + params["c.bias"]
    for run in (on_torch, on_jax):
        # Sums of at most 50 terms.
        assert distance(run(architecture, False, params, {}, x, weight)[0], expected) < 1e-14


@pytest.mark.parametrize("padding", ["zeros", "circular", "valid"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 3), (1, 1)])
def test_convolutions_along_a_line_are_the_same_as_products(padding, kernel, stride):
    net = ArchitectureBuilder((2, 11))
    net.add("c", Conv(2, 3, kernel, padding, stride))
    architecture = net.build()
    arguments = numbers(architecture)
    y, _, gx, gp = on_jax(architecture, False, *arguments)
    other, _, other_gx, other_gp = on_jax(architecture, False, *arguments, lines_as_products=True)
    # Sums of up to ten products in another order.
    assert distance(other, y) < 1e-14
    assert distance(other_gx, gx) < 1e-14
    assert all(distance(other_gp[name], gp[name]) < 1e-14 for name in gp)


def test_circular_convolutions_commute_with_shifts():
    architecture = make(conv_net, (1, 1, (6, 5), True), layers=[3], kernel=3)
    params, buffers, x, weight = numbers(architecture)
    for run in (on_torch, on_jax):
        y = np.asarray(run(architecture, False, params, buffers, x, weight)[0])
        shifted = np.asarray(run(architecture, False, params, buffers, np.roll(x, (2, 1), (2, 3)), weight)[0])
        # The same sums in the same order, up to the choice of kernel.
        np.testing.assert_allclose(shifted, np.roll(y, (2, 1), (2, 3)), rtol=1e-13, atol=1e-14)


def spectral(cells, modes):
    """(architecture, numbers, W F(x) on the whole half spectrum) of a spectral convolution of 2 channels to 3."""
    architecture = Architecture((2, *cells), tuple(_single("f", SpectralConv(2, 3, modes), (2, *cells))))
    data = numbers(architecture)
    params, _, x, _ = data
    weight = params["f.weight_re"] + 1j * params["f.weight_im"]
    axes = tuple(range(2, x.ndim))
    spectrum = np.fft.rfftn(x, axes=axes)
    mixed = np.zeros((len(x), 3, *spectrum.shape[2:]), complex)
    # One mode at a time, by its signed frequencies.
    for place in np.ndindex(*weight.shape[2:]):
        mode = tuple(i - 2 * m if i >= m else i for i, m in zip(place[:-1], modes, strict=False)) + place[-1:]
        at = (slice(None), slice(None), *mode)
        mixed[at] += spectrum[at] @ weight[(slice(None), slice(None), *place)].T
    return architecture, data, np.fft.irfftn(mixed, s=cells, axes=axes)


SPECTRA = [((8,), (3,)), ((7,), (4,)), ((8,), (5,)), ((6, 7), (2, 3)), ((7, 6), (3, 4)), ((8, 6), (4, 4)),
           ((5, 6, 4), (2, 1, 3)), ((4, 6, 5), (2, 3, 3))]  # fmt: skip
"""Odd and even cells; few modes, and all there are, up to the frequency n/2 of the last axis."""


@pytest.mark.parametrize(("cells", "modes"), SPECTRA)
def test_spectral_convolutions_are_those_of_numpy(cells, modes):
    architecture, data, expected = spectral(cells, modes)
    y, _, gx, gp = on_torch(architecture, False, *data)
    jy, _, jgx, jgp = on_jax(architecture, False, *data)
    # Round-off of two transforms of at most 120 cells; measured 1e-15.
    assert distance(y, expected) < 1e-13
    assert distance(jy, expected) < 1e-13
    assert distance(gx, jgx) < 1e-13
    for path, g in gp.items():
        assert distance(g, jgp[path]) < 1e-12, path
    # The map is linear in x and in W: ⟨g, x⟩ and ⟨g_W, W⟩ are both the weighted sum of the output.
    params, _, x, weight = data
    total = np.sum(y * weight)
    assert np.sum(gx * x) == pytest.approx(total, rel=1e-11)
    assert sum(float(np.sum(g.numpy() * params[k])) for k, g in gp.items()) == pytest.approx(total, rel=1e-11)


def test_a_spectral_convolution_applies_a_transfer_function():
    """With W(k) = ik / (2π) it is the derivative of a wave per unit of a box of length 1 over 2π."""
    n, k = 16, 3
    net = ArchitectureBuilder((1, n))
    net.add("f", SpectralConv(1, 1, (5,)))
    params = {"f.weight_re": np.zeros((1, 1, 5)), "f.weight_im": np.arange(5.0).reshape(1, 1, 5)}
    angle = 2 * np.pi * np.arange(n) / n
    # The wave of 7 is above the modes and dropped.
    x = (np.sin(k * angle) + np.cos(7 * angle))[None, None]
    for run in (on_torch, on_jax):
        y = np.asarray(run(net.build(), False, params, {}, x, np.ones_like(x))[0])
        # Round-off of two transforms of 16 cells.
        np.testing.assert_allclose(y[0, 0], k * np.cos(k * angle), atol=1e-13)


def test_coordinates_padding_and_cropping():
    net = ArchitectureBuilder((1, 3, 2))
    net.add("where", Coordinates())
    net.add("pad", Pad(2))
    net.add("crop", Crop(1))
    x, weight = np.ones((2, 1, 3, 2)), np.ones((2, 2, 4, 3))
    expected = np.zeros((2, 4, 3))
    expected[0, :3, :2] = [[0, 0], [0.5, 0.5], [1, 1]]
    expected[1, :3, :2] = [0, 1]
    # The coordinates do not depend on x, which torch would say by no gradient at all.
    params = {k: torch.zeros(s) for k, s in parameter_shapes(net.build()).items()}
    y, _ = TorchNetwork(net.build()).apply(params, {}, torch.tensor(x), False)
    jy, _, jgx, _ = on_jax(net.build(), False, {}, {}, x, weight)
    np.testing.assert_array_equal(y, np.stack([expected, expected]))
    np.testing.assert_array_equal(jy, np.stack([expected, expected]))
    assert y.dtype == torch.float64
    assert not np.any(jgx)


@pytest.mark.parametrize("name", ["u_net-2d", "fno-1d", "fno-2d", "mlp-grid"])
def test_per_sample_jacobians_agree(name):
    architecture = ARCHITECTURES[name]()
    params, buffers, x, _ = numbers(architecture, batch=2)
    t, j = TorchNetwork(architecture), JaxNetwork(architecture)
    tb, jb = ({k: f(v) for k, v in buffers.items()} for f in (torch.tensor, jnp.asarray))

    def torch_one(params, x):
        return t.apply(params, tb, x[None], False)[0].reshape(-1)[:2]

    def jax_one(params, x):
        return j.apply(params, jb, x[None], False)[0].reshape(-1)[:2]

    tp, jp = ({k: f(v) for k, v in params.items()} for f in (torch.tensor, jnp.asarray))
    ours = torch.func.vmap(torch.func.jacrev(torch_one), (None, 0))(tp, torch.tensor(x))
    arguments = jp, jnp.asarray(x)
    theirs = jax.jit(jax.vmap(jax.jacrev(jax_one), (None, 0))).lower(*arguments).compile(FAST_COMPILE)(*arguments)
    scale = max(float(v.abs().max()) for v in ours.values())
    for path, jacobian in ours.items():
        assert jacobian.shape == (2, 2, *params[path].shape)
        # Round-off, as for the gradients.
        assert np.abs(jacobian.numpy() - np.asarray(theirs[path])).max() < 1e-12 * scale


def test_torch_networks_are_pure():
    architecture = ARCHITECTURES["u_net-2d"]()
    params, buffers, x, weight = numbers(architecture)
    tb = {k: torch.tensor(v) for k, v in buffers.items()}
    tp = {k: torch.tensor(v) for k, v in params.items()}
    network = TorchNetwork(architecture)
    before = torch.random.get_rng_state()

    def loss(params):
        y, after = network.apply(params, tb, torch.tensor(x), True)
        return (y * torch.tensor(weight)).sum(), after

    gradient, after = torch.func.grad(loss, has_aux=True)(tp)
    again, _ = torch.func.grad(loss, has_aux=True)(tp)
    assert torch.equal(before, torch.random.get_rng_state())
    for path, value in buffers.items():
        assert np.array_equal(tb[path].numpy(), value)
        assert not np.array_equal(after[path].numpy(), value)
    assert all(torch.equal(gradient[k], again[k]) for k in gradient)


@pytest.mark.parametrize("name", ["mlp-grid", "fno-2d"])
def test_float32_stays_float32(name):
    architecture = ARCHITECTURES[name]()
    params, buffers, x, _ = numbers(architecture)
    single = [{k: v.astype(np.float32) for k, v in tree.items()} for tree in (params, buffers)]
    jy, jafter = JaxNetwork(architecture).apply(*jax.tree.map(jnp.asarray, single), jnp.asarray(x, jnp.float32), True)
    ty, _ = TorchNetwork(architecture).apply(
        *[{k: torch.tensor(v) for k, v in tree.items()} for tree in single],
        torch.tensor(x, dtype=torch.float32),
        True,
    )
    assert jy.dtype == jnp.float32
    assert all(v.dtype == jnp.float32 for v in jafter.values())
    assert ty.dtype == torch.float32
    # Single precision, batch statistics of 3 values.
    assert distance(ty.detach(), jy) < 1e-5
