"""Both backends keep one contract: derivatives, loops, precision, devices, and a process left as it was."""

from __future__ import annotations

import numpy as np
import pytest
from phiml.backend import get_precision
from phiml.backend.jax import JAX
from phiml.backend.torch import TORCH

from toolkit.core.backend import Device, choose_device, devices, implementation, using
from toolkit.core.errors import MissingError

A = np.array([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])


def cubic(backend):
    """f(x) = A x³ for x (B, 3)."""
    a = backend.array(A)
    return lambda x: backend.xp.einsum("ij,bj->bi", a, x**3)


X = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])


# --- arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_precision_by_kind(name):
    with using(name, "cpu", "float64", "float32") as b:
        kinds = {kind: str(b.array(X, kind).dtype).rpartition(".")[-1] for kind in ("physics", "network")}
        assert kinds == {"physics": "float64", "network": "float32"}
        assert str(b.cast(b.array(X, "physics"), "network").dtype).endswith("float32")
        assert b.numpy(b.zeros((2, 3))).dtype == np.float64
        assert b.numpy(b.array(np.arange(3))).dtype == np.int64


def test_numpy_gives_a_copy(backend):
    native = backend.array(X)
    backend.numpy(native)[:] = 0
    assert np.array_equal(backend.numpy(native), X)
    source = X.copy()
    native = backend.array(source)
    source[:] = 0
    assert np.array_equal(backend.numpy(native), X)


# --- derivatives --------------------------------------------------------------------------------------------------


def test_value_and_gradient_of_a_tree(backend):
    def function(tree):
        value = backend.xp.sum(tree["a"] ** 3) + 2 * backend.xp.sum(tree["b"])
        return value, {"a": tree["a"] + 1}

    tree = {"a": backend.array(X), "b": backend.array(X[0]), "unused": backend.array(X[1])}
    value, aux, gradient = backend.value_and_gradient(function, tree)
    assert float(value) == pytest.approx(np.sum(X**3) + 2 * np.sum(X[0]), rel=1e-15)
    assert np.array_equal(backend.numpy(aux["a"]), X + 1)
    assert np.allclose(backend.numpy(gradient["a"]), 3 * X**2, rtol=1e-15)
    assert np.array_equal(backend.numpy(gradient["b"]), [2, 2, 2])
    assert np.array_equal(backend.numpy(gradient["unused"]), [0, 0, 0])


def test_nothing_flows_through_a_stopped_gradient(backend):
    def function(x):
        frozen = backend.without_gradient(lambda x: {"square": x**2}, x)["square"]
        return backend.xp.sum(x * frozen + backend.stop_gradient({"x": x})["x"]), ()

    _, _, gradient = backend.value_and_gradient(function, backend.array(X))
    assert np.allclose(backend.numpy(gradient), X**2, rtol=1e-15)


def test_linearize_gives_the_jacobian_from_both_sides(backend):
    rng = np.random.default_rng(0)
    v, w = rng.standard_normal((2, 3)), rng.standard_normal((2, 2))
    y, push, pull = backend.linearize(cubic(backend), backend.array(X))
    jacobian = A[None] * 3 * X[:, None, :] ** 2
    assert np.allclose(backend.numpy(y), (X**3) @ A.T, rtol=1e-15)
    for _ in range(2):  # again, without evaluating the function again
        assert np.allclose(backend.numpy(push(backend.array(v))), np.einsum("bij,bj->bi", jacobian, v), rtol=1e-13)
        assert np.allclose(backend.numpy(pull(backend.array(w))), np.einsum("bij,bi->bj", jacobian, w), rtol=1e-13)


def test_jacobians_of_one_sample(backend):
    function = cubic(backend)

    def one(x):
        return function(x[None])[0]

    x = backend.array(X[0])
    expected = A * 3 * X[0] ** 2
    assert np.allclose(backend.numpy(backend.jacrev(one)(x)), expected, rtol=1e-14)
    many = backend.vmap(backend.jacrev(one))(backend.array(X))
    assert np.allclose(backend.numpy(many), A[None] * 3 * X[:, None, :] ** 2, rtol=1e-14)


def test_gradient_and_hessian_per_sample(backend):
    """L = x0² x1 + s x2³, with s and a dict of arguments that differ by sample."""

    def loss(x, scale, shift):
        x = x + shift["by"]
        return x[:, 0] ** 2 * x[:, 1] + scale * x[:, 2] ** 3

    scale, shift = np.array([1.0, -2.0]), np.array([[0.0] * 3, [0.5] * 3])
    g, h = backend.gradient_and_hessian(loss, backend.array(X), backend.array(scale), {"by": backend.array(shift)})
    (a, b, c), zero = (X + shift).T, np.zeros(2)
    assert np.allclose(backend.numpy(g), np.stack([2 * a * b, a**2, 3 * scale * c**2], 1), rtol=1e-14)
    expected = [[2 * b, 2 * a, zero], [2 * a, zero, zero], [zero, zero, 6 * scale * c]]
    assert np.allclose(backend.numpy(h), np.moveaxis(np.array(expected), -1, 0), rtol=1e-14, atol=1e-15)


# --- loops and programs -------------------------------------------------------------------------------------------


def test_scan_carries_and_stacks(backend):
    def body(carry, x):
        new = {"sum": carry["sum"] + x["a"] * x["b"]}
        return new, (new["sum"], {"twice": 2 * x["a"]})

    xs = {"a": backend.array(X.T.copy()), "b": backend.array(np.array([1.0, 10.0, 100.0]))}
    carry, (sums, rest) = backend.scan(body, {"sum": backend.array(np.zeros(2))}, xs, 3)
    expected = np.cumsum(X.T * np.array([[1.0], [10.0], [100.0]]), axis=0)
    assert np.allclose(backend.numpy(sums), expected, rtol=1e-15)
    assert np.allclose(backend.numpy(carry["sum"]), expected[-1], rtol=1e-15)
    assert np.array_equal(backend.numpy(rest["twice"]), 2 * X.T)


def test_while_loop_runs_until_its_condition_fails(backend):
    start = backend.array(np.array([1.0, 3.0]))
    found = backend.while_loop(lambda x: backend.xp.any(x < 50), lambda x: 2 * x, start)
    assert np.array_equal(backend.numpy(found), [64, 192])


def test_compiled_and_traced_functions_compute_the_same(backend):
    def function(tree, factor):
        return {"y": cubic(backend)(tree["x"]) * factor}

    arguments = ({"x": backend.array(X)}, backend.array(np.array(2.0)))
    expected = 2 * (X**3) @ A.T
    before = backend.trace_seconds
    for make in (backend.compile, backend.trace):
        made = make(function, *arguments)
        assert np.allclose(backend.numpy(made(*arguments)["y"]), expected, rtol=1e-15)
        other = ({"x": backend.array(2 * X)}, backend.array(np.array(1.0)))
        assert np.allclose(backend.numpy(made(*other)["y"]), 4 * expected, rtol=1e-15)
    # JAX compiles, torch traces; one of the two took time on either.
    assert backend.trace_seconds > before


def test_a_traced_function_is_differentiable(backend):
    x = backend.array(X)
    traced = backend.trace(cubic(backend), x)
    _, _, gradient = backend.value_and_gradient(lambda x: (backend.xp.sum(traced(x)), ()), x)
    assert np.allclose(backend.numpy(gradient), A.sum(axis=0) * 3 * X**2, rtol=1e-14)


# --- the namespace ------------------------------------------------------------------------------------------------

CALLS = {
    "sum": lambda xp, x: xp.sum(x),
    "sum_axis": lambda xp, x: xp.sum(x, axis=1),
    "sum_axes": lambda xp, x: xp.sum(x, axis=(0, 1)),
    "mean": lambda xp, x: xp.mean(x),
    "mean_axis": lambda xp, x: xp.mean(x, axis=-1),
    "max": lambda xp, x: xp.max(x),
    "max_axis": lambda xp, x: xp.max(x, axis=0),
    "stack": lambda xp, x: xp.stack([x, 2 * x], axis=1),
    "concatenate": lambda xp, x: xp.concatenate([x, x], axis=1),
    "moveaxis": lambda xp, x: xp.moveaxis(x, 0, -1),
    "reshape": lambda xp, x: xp.reshape(x, (3, -1)),
    "where": lambda xp, x: xp.where(x > 0, x, -x),
    "logic": lambda xp, x: 1 * xp.logical_or(xp.logical_and(x > 0, x < 2), xp.logical_not(x < 3)),
    "any": lambda xp, x: 1 * xp.any(x > 2),
    "all": lambda xp, x: 1 * xp.all(x > -2),
    "full_like": lambda xp, x: xp.full_like(x, 3) + xp.zeros_like(x) + xp.ones_like(x),
    "pointwise": lambda xp, x: xp.sign(x) * xp.sqrt(xp.abs(x)) + xp.exp(x) + xp.log(xp.abs(x) + 1),
    "extremes": lambda xp, x: xp.minimum(x, 2 * x) + xp.maximum(x, xp.zeros_like(x)),
    "finite": lambda xp, x: 1 * xp.isfinite(x / xp.where(x == 0, xp.full_like(x, float("inf")), x)),
    "matmul": lambda xp, x: xp.matmul(x, xp.moveaxis(x, 0, 1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_array_functions_are_numpys(backend, name):
    found = backend.numpy(CALLS[name](backend.xp, backend.array(X)))
    assert np.allclose(found, CALLS[name](np, X), rtol=1e-14)


def test_linear_algebra(backend):
    m = np.stack([A.T @ A + np.eye(3), np.diag([3.0, 1.0, 2.0])])
    values, vectors = (backend.numpy(a) for a in backend.xp.eigh(backend.array(m)))
    assert np.all(np.diff(values) >= 0)
    assert np.allclose(np.einsum("bij,bj,bkj->bik", vectors, values, vectors), m, atol=1e-13)
    rhs = X
    solved = backend.numpy(backend.xp.solve(backend.array(m), backend.array(rhs)))
    assert np.allclose(np.einsum("bij,bj->bi", m, solved), rhs, atol=1e-13)
    eye = backend.xp.eye(3, backend.array(X))
    assert np.array_equal(backend.numpy(eye), np.eye(3))
    assert backend.numpy(eye).dtype == np.float64


# --- choosing -----------------------------------------------------------------------------------------------------

CPU, GPU0, GPU1 = (Device(k, n, "") for k, n in (("cpu", "cpu"), ("gpu", "gpu:0"), ("gpu", "gpu:1")))


@pytest.mark.parametrize(
    ("wanted", "present", "chosen"),
    [
        ("auto", (CPU,), CPU),
        ("auto", (CPU, GPU0, GPU1), GPU0),
        ("cpu", (CPU, GPU0), CPU),
        ("gpu", (CPU, GPU0, GPU1), GPU0),
        ("gpu:1", (CPU, GPU0, GPU1), GPU1),
    ],
)
def test_devices_are_chosen_by_word(wanted, present, chosen):
    assert choose_device(wanted, present, "torch") is chosen


@pytest.mark.parametrize("wanted", ["gpu", "gpu:1", "tpu"])
def test_an_absent_device_is_named_with_what_is_there(wanted):
    with pytest.raises(MissingError, match=r"run\.device.*present: cpu") as caught:
        choose_device(wanted, (CPU,), "jax")
    assert ("pip install -e '.[gpu-jax]'" in str(caught.value)) == wanted.startswith("gpu")


def test_an_unknown_backend_is_refused():
    with pytest.raises(MissingError, match="no backend 'tensorflow'; known: torch, jax"):
        implementation("tensorflow")


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_the_cpu_is_always_there(name):
    assert devices(name)[0].kind == "cpu"


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_phiml_follows_the_run_and_is_put_back_afterwards(name):
    library = {"torch": TORCH, "jax": JAX}[name]
    before = (get_precision(), library.get_default_device())
    with using(name, "cpu", "float64"):
        assert get_precision() == 64
        assert library.get_default_device().device_type == "CPU"
    assert (get_precision(), library.get_default_device()) == before
    with pytest.raises(ZeroDivisionError), using(name, "cpu", "float64"):
        _ = 1 / 0
    assert (get_precision(), library.get_default_device()) == before


def test_gradients_of_what_depends_on_nothing_are_zero_where_that_may_be(backend):
    tree = {"a": backend.array(np.ones(2))}
    constant = backend.array(np.array(3.0))
    value, _, gradient = backend.value_and_gradient(lambda tree: (constant, ()), tree, may_vanish=True)
    assert float(value) == 3.0
    assert np.array_equal(backend.numpy(gradient["a"]), [0.0, 0.0])
    if backend.name == "torch":
        # JAX cannot tell; on torch something outside of its sight has cut the gradient.
        with pytest.raises(RuntimeError, match="does not require grad"):
            backend.value_and_gradient(lambda tree: (constant, ()), tree)


def test_a_gate_cuts_an_infinite_derivative_without_a_trace(backend):
    def function(tree, gates):
        through = backend.gate(tree["a"], gates["g"])
        return backend.xp.sum(backend.xp.sqrt(through) + 2 * tree["a"]), ()

    gates = {"g": backend.array(np.array([0.0, 1.0, 0.5]))}
    value, _, found = backend.gated_gradients(function, {"a": backend.array(np.zeros(1))}, gates)
    assert float(value) == 0.0
    assert [backend.numpy(gradient["a"]).item() for gradient in found] == [2.0, np.inf, np.inf]
