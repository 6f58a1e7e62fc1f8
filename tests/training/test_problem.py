"""Networks in their place: which channels become which control, in open and closed loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numeric_cases import built, heat, relative

from toolkit.core.params import prefixed, subtree
from toolkit.networks import conv_net
from toolkit.networks.initialise import initialise
from toolkit.networks.plugin import NetworkShape
from toolkit.physics.layout import Layout
from toolkit.training.channels import channel_count
from toolkit.training.problem import Batch, Control, NetworkUse

STEPS, DT = 3, 0.5
FIELD, FORCE = Layout((), {"x": 8}), Layout((), {"x": 8}, steps=STEPS)
U0, Q = Control("u0", "initial.temperature", FIELD), Control("q", "force.temperature", FORCE)


def heat_case(backend, controls, outputs, every_step=False):
    """A heat problem of three steps with these controls, all given by one network."""
    case = built(heat(), backend)
    architecture = conv_net.build(conv_net.ConvNetOptions(layers=[2]), NetworkShape(1, outputs, (8,), periodic=True))
    weights, _ = initialise(architecture, np.random.default_rng(0))
    inputs = ("state",) if every_step else ("target",)
    problem = replace(
        case.problem,
        rollout=replace(case.problem.rollout, steps=STEPS, dt=DT, _traced={}),
        controls=controls,
        networks=(NetworkUse("f", backend.network(architecture).apply, controls, every_step, inputs),),
    )
    params = prefixed({name: backend.array(value) for name, value in weights.items()}, "f")
    return replace(case, problem=problem, params=params, buffers={})


def raw_output(case, backend, x):
    """What the network gives for x (B, 1, cells)."""
    use = case.problem.networks[0]
    return backend.numpy(use.apply(subtree(case.params, "f"), {}, backend.array(x[:, None]), False)[0])


def test_channels_go_to_the_controls_in_the_order_of_the_output(backend):
    case = heat_case(backend, (U0, Q), 1 + STEPS)
    y = np.random.default_rng(0).standard_normal((3, 8))
    x, _ = case.problem.predict(case.params, {}, Batch({"final.temperature": backend.array(y)}), training=False)
    out = raw_output(case, backend, y)
    assert out.shape == (3, 1 + STEPS, 8)
    assert np.array_equal(backend.numpy(x["initial.temperature"]), out[:, 0])
    # One channel per time step.
    assert np.array_equal(backend.numpy(x["force.temperature"]), out[:, 1:])
    assert not np.array_equal(out[:, 0], out[:, 1])


def test_a_network_in_the_loop_acts_on_every_state(backend):
    case = heat_case(backend, (Q,), 1, every_step=True)
    u = np.random.default_rng(1).standard_normal((2, 8))
    problem = case.problem
    policy = problem.policy(case.params, case.buffers, {})
    found = problem.simulate({}, {"initial.temperature": backend.array(u)}, policy, record=True)
    decay = 0.05 * DT * (2 * np.pi * np.fft.fftfreq(8)) ** 2
    gain = np.where(decay == 0, 1.0, -np.expm1(-decay) / np.where(decay == 0, 1, decay))
    for k in range(STEPS):
        q = raw_output(case, backend, u)[:, 0]
        assert relative(backend.numpy(found.forces["temperature"])[:, k], q) < 1e-12
        u = np.fft.ifft(np.exp(-decay) * np.fft.fft(u) + DT * gain * np.fft.fft(q)).real
        assert relative(backend.numpy(found.states["temperature"])[:, k], u) < 1e-12


@pytest.mark.parametrize(
    ("layout", "channels"),
    [(Layout(), 1), (Layout(("a", "b"), {"x": 4}), 2), (Layout(("a", "b"), {"x": 4}, steps=3), 6)],
)
def test_channels_count_components_times_steps(layout, channels):
    assert channel_count(layout) == channels
