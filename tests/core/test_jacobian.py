"""Per-sample Jacobians: every route gives what one backward pass per output gives."""

from __future__ import annotations

import numpy as np
import pytest
from numeric_cases import relative
from phiml import math

from toolkit.core.jacobian import control_jacobian, network_jacobian, parameter_jacobian
from toolkit.core.params import count, flatten, unflatten
from toolkit.networks.initialise import initialise
from toolkit.networks.mlp import PLUGIN as MLP
from toolkit.networks.plugin import NetworkShape
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import Rollout

SAMPLES, INPUTS, CONTROLS, OUTPUTS = 4, 3, 2, 5
# Routes differ in the order of float64 sums alone.
SAME = 1e-13


class Oscillator:
    """x'' = −x³ by semi-implicit Euler."""

    def step(self, state, inputs, t, dt):
        x, v = state["s"].vector["x"], state["s"].vector["v"]
        v = v - dt * x**3
        return {"s": math.stack([x + dt * v, v], math.channel(vector="x,v"))}


def mixed(backend, x, weights):
    """y (B, m): products of neighbours after a linear map, different per sample."""
    z = backend.xp.einsum("bmn,bn->bm", weights, x)
    return z * backend.xp.exp(-z * z)


@pytest.fixture
def case(backend):
    architecture = MLP.build(MLP.options(layers=[6], activation="tanh"), NetworkShape(INPUTS, CONTROLS))
    rng = np.random.default_rng(0)
    weights, _ = initialise(architecture, rng)
    params = {name: backend.array(value) for name, value in weights.items()}
    network = backend.network(architecture)
    inputs = backend.array(rng.standard_normal((SAMPLES, INPUTS)))
    maps = backend.array(rng.standard_normal((SAMPLES, OUTPUTS, CONTROLS)))
    return params, lambda theta, y: network.apply(theta, {}, y[None], False)[0][0], inputs, maps


def by_rows(backend, function, vector, shape):
    """Jacobian of function(vector) -> array of `shape`, one gradient per entry."""
    rows = []
    for index in np.ndindex(*shape):
        _, _, row = backend.value_and_gradient(lambda v, index=index: (function(v)[index], ()), vector)
        rows.append(backend.numpy(row))
    return np.array(rows).reshape(*shape, -1)


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse", "loop"])
def test_control_jacobian_is_that_of_one_pass_per_output(backend, case, mode):
    _, _, _, maps = case
    x = backend.array(np.random.default_rng(1).standard_normal((SAMPLES, CONTROLS)))
    found = backend.numpy(control_jacobian(backend, lambda x: mixed(backend, x, maps), x, mode))
    whole = by_rows(backend, lambda x: mixed(backend, x, maps), x, (SAMPLES, OUTPUTS))
    whole = whole.reshape(SAMPLES, OUTPUTS, SAMPLES, CONTROLS)
    expected = np.stack([whole[i, :, i] for i in range(SAMPLES)])
    assert relative(found, expected) < SAME


def test_auto_takes_the_shorter_side(backend, case, monkeypatch):
    _, _, _, maps = case
    used = []
    for name in ("pushforwards", "pullbacks"):
        original = getattr(backend, name)

        def spy(*args, name=name, original=original, **kwargs):
            used.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(backend, name, spy)
    few = backend.array(np.ones((SAMPLES, CONTROLS)))
    control_jacobian(backend, lambda x: mixed(backend, x, maps), few)
    many = backend.array(np.ones((SAMPLES, OUTPUTS)))
    wide = backend.xp.moveaxis(maps, 1, 2)
    control_jacobian(backend, lambda x: mixed(backend, x, wide), many)
    assert used == ["pushforwards", "pullbacks"]


def test_network_jacobian_follows_the_flat_view(backend, case):
    params, network, inputs, _ = case
    found = backend.numpy(network_jacobian(backend, network, params, inputs))
    assert found.shape == (SAMPLES, CONTROLS, count(params))
    for i in range(SAMPLES):
        rows = by_rows(
            backend,
            lambda flat, i=i: network(unflatten(flat, params, backend), inputs[i]),
            flatten(params, backend),
            (CONTROLS,),
        )
        assert relative(found[i], rows) < SAME


@pytest.mark.parametrize("memory", [2**30, 1])
@pytest.mark.parametrize("mode", ["forward", "reverse", "loop"])
def test_parameter_jacobian_is_the_product_in_any_chunks(backend, case, mode, memory):
    params, network, inputs, maps = case

    def physics(x, context):
        return mixed(backend, x, context["maps"])

    found = backend.numpy(
        parameter_jacobian(backend, network, physics, params, inputs, {"maps": maps}, mode, memory=memory)
    )
    for i in range(SAMPLES):
        rows = by_rows(
            backend,
            lambda flat, i=i: mixed(
                backend, network(unflatten(flat, params, backend), inputs[i])[None], maps[i : i + 1]
            )[0],
            flatten(params, backend),
            (OUTPUTS,),
        )
        assert relative(found[i], rows) < SAME


@pytest.mark.parametrize("traced", [False, True])
def test_every_route_goes_through_a_rollout(backend, traced):
    """PhiML operators, several time steps, eager and (on torch) as a traced graph, against central differences."""
    rollout = Rollout(backend, Oscillator(), {"s": Layout(("x", "v"))}, {}, steps=6, dt=0.1)
    x = backend.array(np.random.default_rng(2).standard_normal((SAMPLES, 2)))
    if traced:
        rollout.prepare({"s": x})

    def physics(x):
        return rollout({"s": x}).final["s"]

    found = {m: backend.numpy(control_jacobian(backend, physics, x, m)) for m in ("forward", "reverse", "loop")}
    h, columns = 1e-6, []
    for j in range(2):
        shift = np.zeros((SAMPLES, 2))
        shift[:, j] = h
        ends = [backend.numpy(physics(x + sign * backend.array(shift))) for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * h))
    for jacobian in found.values():
        # Differences with h = 1e-6 are good to about 1e-10.
        assert relative(jacobian, np.stack(columns, axis=2)) < 1e-8
        assert relative(jacobian, found["reverse"]) < SAME
