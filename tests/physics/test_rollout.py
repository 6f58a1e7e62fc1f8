"""Rollouts against hand-written loops, and the gates against the adjoint recursion written out in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numeric_cases import relative
from phiml import math

from plugins.heat import PLUGIN as HEAT
from plugins.heat import HeatParameters
from toolkit.physics.grid import Grid
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import (
    FULL,
    NETWORK,
    PHYSICS,
    STOPPED,
    Controls,
    GradientFlow,
    Rollout,
)

N, STEPS, SAMPLES = 3, 5, 2
STATE = Layout(("a", "b", "c"))


class Linear:
    """s ← A s + B c, with the time t added to the first component so that its value is seen."""

    def __init__(self, backend, a: np.ndarray, b: np.ndarray):
        self.backend = backend
        self.a, self.b = backend.array(a), backend.array(b)

    def step(self, state, inputs, t, dt):
        xp, samples = self.backend.xp, state["s"].shape.get_size("sample")
        new = xp.einsum("ij,bj->bi", self.a, STATE.native(state["s"], samples))
        if "s" in inputs.force:
            new = new + xp.einsum("ij,bj->bi", self.b, STATE.native(inputs.force["s"], samples))
        return {"s": STATE.wrap(new + t * self.backend.array(np.array([1.0, 0.0, 0.0])))}


class ClosedLoop:
    """c = u + 0.3 u², u = W s: a controller whose input Jacobian K depends on the state."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.a, self.b, self.w = (0.6 * rng.standard_normal((N, N)) for _ in range(3))
        self.start = rng.standard_normal((SAMPLES, N))
        self.dt = 0.25

    def rollout(self, backend) -> Rollout:
        return Rollout(backend, Linear(backend, self.a, self.b), {"s": STATE}, {}, STEPS, self.dt)

    def loss_and_gradient(self, backend, flow: GradientFlow, everywhere: bool) -> tuple[float, np.ndarray]:
        """(L, V) of the rollout: L = ½Σ|s_n|², or ½Σ over all states."""
        roll, xp = self.rollout(backend), backend.xp
        start = backend.array(self.start)

        def loss(w: Any) -> tuple[Any, Any]:
            def policy(state: Any, i: Any) -> dict[str, Any]:
                u = xp.einsum("ij,bj->bi", w, state["s"])
                return {"s": u + 0.3 * u**2}

            result = roll({"s": start}, policy=policy, flow=flow, record=everywhere)
            seen = result.states["s"] if everywhere else result.final["s"]
            return 0.5 * xp.sum(seen**2), ()

        w = backend.array(self.w)
        value, gradient = backend.compile(lambda w: backend.value_and_gradient(loss, w)[::2], w)(w)
        return float(value), backend.numpy(gradient)

    def states(self, w: np.ndarray) -> list[np.ndarray]:
        """s_0 … s_n."""
        s = [self.start]
        for i in range(STEPS):
            u = s[-1] @ w.T
            s.append(s[-1] @ self.a.T + (u + 0.3 * u**2) @ self.b.T + [i * self.dt, 0, 0])
        return s

    def loss(self, w: np.ndarray, everywhere: bool) -> float:
        s = self.states(w)
        return 0.5 * sum(float(np.sum(x**2)) for x in (s[1:] if everywhere else s[-1:]))

    def adjoint(self, alpha: Any, beta: Any, everywhere: bool) -> np.ndarray:
        """V(α, β) = Σ (∂c/∂W)ᵀ μ_i with μ_i = Bᵀλ_{i+1}, λ_i = ∇ℓ_i + β_i Aᵀλ_{i+1} + α_i K_iᵀμ_i."""
        alpha, beta = (np.broadcast_to(np.asarray(g, float), (STEPS,)) for g in (alpha, beta))
        s, total = self.states(self.w), np.zeros((N, N))
        lam = s[-1]
        for i in reversed(range(STEPS)):
            slope = 1 + 0.6 * s[i] @ self.w.T
            mu = (lam @ self.b) * slope
            total += mu.T @ s[i]
            direct = s[i] if everywhere else 0.0
            lam = direct + beta[i] * (lam @ self.a) + alpha[i] * (mu @ self.w)
        return total


TOY = ClosedLoop()
CUT_EVERY_SECOND = GradientFlow((1.0, 0.0, 1.0, 0.0, 1.0), (1.0, 0.0, 1.0, 0.0, 1.0))
FLOWS = {
    "full": FULL,
    "physics": PHYSICS,
    "network": NETWORK,
    "stopped": STOPPED,
    "half": GradientFlow(0.5, 0.25),
    "truncated": CUT_EVERY_SECOND,
    "mixed": GradientFlow((0.0, 1.0, 0.5, 0.0, 1.0), 1.0),
}


@pytest.mark.parametrize("everywhere", [False, True], ids=["final", "trajectory"])
@pytest.mark.parametrize("name", FLOWS)
def test_gates_follow_the_adjoint_recursion_and_leave_the_values_alone(backend, name, everywhere):
    flow = FLOWS[name]
    value, gradient = TOY.loss_and_gradient(backend, flow, everywhere)
    # An open gate given as a number adds nothing at all; as an array it rounds g·x + (1 − g)·x.
    assert value == pytest.approx(TOY.loss(TOY.w, everywhere), rel=1e-13)
    expected = TOY.adjoint(flow.network_input, flow.physics_state, everywhere)
    assert relative(gradient, expected) < 1e-12
    if name != "full":
        assert relative(gradient, TOY.adjoint(1, 1, everywhere)) > 1e-3


def test_values_are_bit_equal_for_all_flows(backend):
    """Gates of 0 and 1, constant or per step, are exact: 1·x + 0·x and 0·x + 1·x."""
    values = {TOY.loss_and_gradient(backend, FLOWS[n], True)[0] for n in ("full", "physics", "network", "stopped")}
    # XLA may fuse the four programs differently: two units in the last place.
    assert max(values) - min(values) <= 4e-16 * max(values)
    assert backend.name == "jax" or len(values) == 1


@pytest.mark.parametrize("everywhere", [False, True], ids=["final", "trajectory"])
def test_full_flow_is_the_gradient_of_the_loss(backend, everywhere):
    _, gradient = TOY.loss_and_gradient(backend, FULL, everywhere)
    d, h = np.random.default_rng(1).standard_normal((N, N)), 1e-6
    ends = [TOY.loss(TOY.w + sign * h * d, everywhere) for sign in (1, -1)]
    # Central differences: h² plus rounding over h.
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(np.sum(gradient * d), rel=1e-7)


def test_open_loop_equals_a_loop_written_by_hand(backend):
    force = np.random.default_rng(2).standard_normal((SAMPLES, STEPS, N))
    roll = TOY.rollout(backend)

    def run(start: Any, force: Any) -> Any:
        result = roll({"s": start}, Controls(force={"s": force}), record=True)
        assert not result.forces
        return result.final["s"], result.states["s"]

    arguments = (backend.array(TOY.start), backend.array(force))
    final, states = (backend.numpy(a) for a in backend.compile(run, *arguments)(*arguments))
    s = TOY.start
    for i in range(STEPS):
        s = s @ TOY.a.T + force[:, i] @ TOY.b.T + [i * TOY.dt, 0, 0]
        assert relative(states[:, i], s) < 1e-14
    assert np.array_equal(final, states[:, -1])


def test_closed_loop_reports_what_the_policy_did(backend):
    roll = TOY.rollout(backend)

    def run(start: Any) -> Any:
        result = roll({"s": start}, policy=lambda state, i: {"s": 2 * state["s"] + i}, record=True)
        return result.states["s"], result.forces["s"]

    start = backend.array(TOY.start)
    states, forces = (backend.numpy(a) for a in backend.compile(run, start)(start))
    before = np.concatenate([TOY.start[:, None], states[:, :-1]], axis=1)
    assert relative(forces, 2 * before + np.arange(STEPS)[:, None]) < 1e-14


def test_two_halves_make_a_whole(backend):
    """`start` is the number of the first step: time goes on."""
    whole, half = TOY.rollout(backend), Rollout(backend, Linear(backend, TOY.a, TOY.b), {"s": STATE}, {}, 2, TOY.dt)
    rest = Rollout(backend, half.pde, {"s": STATE}, {}, STEPS - 2, TOY.dt)
    start = {"s": backend.array(TOY.start)}
    joined = rest(half(start).final, start=2).final["s"]
    assert relative(backend.numpy(joined), backend.numpy(whole(start).final["s"])) < 1e-14


class Pushed:
    """s ← s + (0, 1, 2) (force + 2 source) dt, by numbers that are no fields."""

    def step(self, state, inputs, t, dt):
        push = inputs.force["push"] + 2 * inputs.source["push"]
        return {"s": state["s"] + math.wrap([0.0, 1.0, 2.0], math.channel(vector="a,b,c")) * push * dt}


def test_actions_have_their_own_layout_in_open_and_closed_loop(backend):
    """A force (sample, t) and a source (sample,) that act on no field; traced as in training."""
    rng = np.random.default_rng(5)
    force, source = rng.standard_normal((SAMPLES, STEPS)), rng.standard_normal(SAMPLES)
    roll = Rollout(backend, Pushed(), {"s": STATE}, {}, STEPS, 0.5, {"push": Layout()})
    controls = Controls({"push": backend.array(force)}, {"push": backend.array(source)})
    start = {"s": backend.zeros((SAMPLES, N))}
    roll.prepare(start, controls)
    expected = np.cumsum(force + 2 * source[:, None], axis=1)[..., None] * [0.0, 0.5, 1.0]
    assert relative(backend.numpy(roll(start, controls, record=True).states["s"]), expected) < 1e-14

    def policy(state: Any, i: Any) -> dict[str, Any]:
        return {"push": state["s"][:, 1] + 1}

    found = roll(start, Controls(source=controls.source), policy, record=True)
    s = np.zeros(SAMPLES)
    for k in range(STEPS):
        assert relative(backend.numpy(found.forces["push"])[:, k], s + 1) < 1e-14
        s = s + 0.5 * (s + 1 + 2 * source)
    assert relative(backend.numpy(found.final["s"]), s[:, None] * [0.0, 1.0, 2.0]) < 1e-14


def heat_rollout(backend, steps: int) -> Rollout:
    grid = Grid({"x": 6, "y": 4}, {"x": 3.0, "y": 5.0})
    pde = HEAT.build(grid, HeatParameters(diffusivity=0.3))
    return Rollout(backend, pde, {"temperature": Layout((), dict(grid.cells))}, {}, steps, 0.1)


def test_traced_steps_give_the_values_and_gradients_of_eager_ones(backend):
    rng = np.random.default_rng(3)
    u, f = (backend.array(rng.standard_normal(s)) for s in ((2, 6, 4), (2, 3, 6, 4)))
    eager, traced = heat_rollout(backend, 3), heat_rollout(backend, 3)
    traced.prepare({"temperature": u}, Controls(force={"temperature": f}))
    assert len(traced._traced) == 1

    def run(roll: Rollout, tree: Any) -> Any:
        def loss(tree: Any) -> Any:
            controls = Controls(force={"temperature": tree["force"]})
            final = roll({"temperature": tree["initial"]}, controls).final["temperature"]
            return backend.xp.sum(final**3), final

        return backend.value_and_gradient(loss, tree)[1:]

    tree = {"initial": u, "force": f}
    for first, second in zip(*(_leaves(backend, run(roll, tree)) for roll in (eager, traced)), strict=True):
        assert relative(second, first) < 1e-14
        assert np.max(np.abs(first)) > 1e-3


def test_a_trace_serves_only_the_shapes_it_was_made_for(backend):
    """Another batch size falls back to eager steps and is still right."""
    roll = heat_rollout(backend, 3)
    u = np.random.default_rng(4).standard_normal((3, 6, 4))
    roll.prepare({"temperature": backend.array(u[:2])})
    all_of_them = backend.numpy(roll({"temperature": backend.array(u)}).final["temperature"])
    two = backend.numpy(roll({"temperature": backend.array(u[:2])}).final["temperature"])
    assert relative(all_of_them[:2], two) < 1e-14


def test_shapes_are_traced_once(backend, monkeypatch):
    roll = heat_rollout(backend, 1)
    traced = []
    original = backend.trace
    monkeypatch.setattr(backend, "trace", lambda *args: traced.append(1) or original(*args))
    for samples in (2, 2, 3):
        roll.prepare({"temperature": backend.array(np.zeros((samples, 6, 4)))})
    assert len(traced) == 2


class Clock:
    """u' = cos t: a step that reads the time."""

    def step(self, state, inputs, t, dt):
        return {"u": state["u"] + dt * math.cos(t)}


def test_time_has_the_precision_of_the_physics(backend):
    roll = Rollout(backend, Clock(), {"u": Layout()}, {}, 40, 0.1)
    found = backend.numpy(roll({"u": backend.array(np.zeros(1))}).final["u"])
    # Single precision of t would show at 1e-8.
    assert abs(found[0] - 0.1 * np.cos(0.1 * np.arange(40)).sum()) < 1e-14


def _leaves(backend, result: Any) -> list[np.ndarray]:
    final, gradient = result
    return [backend.numpy(v) for v in (final, gradient["initial"], gradient["force"])]
