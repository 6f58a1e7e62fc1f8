"""Many time steps of a PDE, open or closed loop, with gates on two edges of the gradient.

    o_i = gate(s_i, α_i),   c_i = policy(o_i),   s_{i+1} = step(gate(s_i, β_i), c_i)

A gate is the identity forward; backward it multiplies by its value (Schnell & Thuerey 2024, section 3: α = 0 stops
the path through the controller's input, β = 0 the path through the physics state). The loop is rolled on JAX; on
torch one traced step is repeated.

A backward pass keeps what every step computed. With `rematerialise` = L it keeps the state after every L-th step and
computes L steps again when it comes to them: memory for T/L + L steps instead of T, least at L = √T, for one more
evaluation of the steps. Griewank 1992, Chen et al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from toolkit.core.backend import Backend
from toolkit.physics.layout import Layout
from toolkit.physics.plugin import PDE, Inputs

Natives = Mapping[str, Any]


@dataclass(frozen=True)
class GradientFlow:
    """Gates α (state → controller input) and β (state → next state): numbers in [0, 1], or one per step.

    Native arrays, of shape () or (steps,), are gates as data: one compiled program serves all their values.
    """

    network_input: Any = 1.0
    physics_state: Any = 1.0


FULL = GradientFlow()
PHYSICS = GradientFlow(network_input=0.0)
NETWORK = GradientFlow(physics_state=0.0)
STOPPED = GradientFlow(0.0, 0.0)


@dataclass(frozen=True)
class Controls:
    """Native controls of a rollout by name of what they act on; `force` has one entry per step, (sample, t, …)."""

    force: Natives = field(default_factory=dict)
    source: Natives = field(default_factory=dict)
    parameter: Natives = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """What a rollout gives: the last state, and all states after each step where they were asked for."""

    final: dict[str, Any]
    states: dict[str, Any]
    """(sample, t, …) for t = 1 … steps; empty unless recorded."""
    forces: dict[str, Any]
    """(sample, t, …), what the policy did; empty in open loop."""


Policy = Callable[[Natives, Any], dict[str, Any]]
"""(state, step number) -> forces of the step."""


@dataclass(frozen=True)
class NamedPolicy:
    """A policy that names the arrays it depends on, so that a backward pass that computes steps again finds them."""

    arrays: Any
    act: Callable[[Any, Natives, Any], dict[str, Any]]
    """(arrays, state, step number) -> forces of the step."""

    def __call__(self, state: Natives, step: Any) -> dict[str, Any]:
        return self.act(self.arrays, state, step)


@dataclass(frozen=True)
class Rollout:
    """`steps` time steps of size `dt` of a PDE whose fields have these layouts."""

    backend: Backend
    pde: PDE
    layouts: Mapping[str, Layout]
    """By field."""
    parameter_layouts: Mapping[str, Layout]
    steps: int
    dt: float
    action_layouts: Mapping[str, Layout] = field(default_factory=dict)
    """Of forces and sources that act on no field, by action."""
    rematerialise: int | None = None
    """Steps that a backward pass computes again at a time; None: it keeps them all."""
    _traced: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(
        self,
        initial: Natives,
        controls: Controls | None = None,
        policy: Policy | None = None,
        flow: GradientFlow = FULL,
        record: bool = False,
        start: Any = 0,
        offsets: Natives | None = None,
    ) -> Trajectory:
        """States from `initial`, step number `start` on; pure.

        `offsets` (sample, steps + 1, …) by field are added to the states s_0 … s_T as they arise: the derivative with
        respect to offsets of zero is the adjoint of each state.
        """
        controls = controls or Controls()
        b = self.backend
        count = b.array(np.arange(self.steps)) + start
        forces = {name: b.xp.moveaxis(value, 1, 0) for name, value in controls.force.items()}
        gates, fixed = self._gates(flow)
        moved = {name: b.xp.moveaxis(value, 1, 0) for name, value in (offsets or {}).items()}
        later = {name: value[1:] for name, value in moved.items()}
        initial = {name: value + moved[name][0] if name in moved else value for name, value in initial.items()}

        constant = (policy.arrays if isinstance(policy, NamedPolicy) else {}, controls.source, controls.parameter)

        def body(constant: Any, state: dict[str, Any], x: Any) -> tuple[dict[str, Any], Any]:
            (arrays, source, parameter), (i, force, gate_values, offset) = constant, x
            gate = {**fixed, **gate_values}
            alpha, beta = gate["alpha"], gate["beta"]
            if policy is not None:
                seen = {k: self._gate(v, alpha) for k, v in state.items()}
                acts = policy.act(arrays, seen, i) if isinstance(policy, NamedPolicy) else policy(seen, i)
                force = {**force, **acts}
            gated = {k: self._gate(v, beta) for k, v in state.items()}
            new = self._step(gated, force, source, parameter, i)
            new = {k: v + offset[k] if k in offset else v for k, v in new.items()}
            return new, ((new if record else {}), (force if policy is not None else {}))

        if self.rematerialise is not None and policy is not None and not isinstance(policy, NamedPolicy):
            raise ValueError("steps can only be computed again with a NamedPolicy, whose arrays are known")
        final, (states, used) = self._scan(body, constant, initial, (count, forces, gates, later))
        by_sample = {name: b.xp.moveaxis(value, 0, 1) for name, value in states.items()}
        return Trajectory(final, by_sample, {n: b.xp.moveaxis(v, 0, 1) for n, v in used.items()})

    def _scan(self, body: Callable[..., tuple[Any, Any]], constant: Any, initial: Any, xs: Any) -> tuple[Any, Any]:
        """All steps, in stretches that are computed again in a backward pass where that is asked for."""
        b, length = self.backend, self.rematerialise
        if length is None or length >= self.steps:
            return b.scan(partial(body, constant), initial, xs, self.steps)
        stretches, rest = divmod(self.steps, length)
        whole = stretches * length
        apart = map_arrays(lambda a: b.xp.reshape(a[:whole], (stretches, length, *a.shape[1:])), xs)
        stretch = b.rematerialise(lambda constant, state, x: b.scan(partial(body, constant), state, x, length))
        state, ys = b.scan(partial(stretch, constant), initial, apart, stretches)
        ys = map_arrays(lambda a: b.xp.reshape(a, (whole, *a.shape[2:])), ys)
        if not rest:
            return state, ys
        state, last = b.scan(partial(body, constant), state, map_arrays(lambda a: a[whole:], xs), rest)
        return state, map_arrays(lambda a, z: b.xp.concatenate([a, z], axis=0), ys, last)

    def prepare(self, initial: Natives, controls: Controls | None = None) -> None:
        """Trace one step for arrays of these shapes; later calls with such shapes use it.

        Tracing costs a few eager steps, so it pays for whatever runs more than once, as all training does.
        """
        controls = controls or Controls()
        force = {name: value[:, 0] for name, value in controls.force.items()}
        step = self.backend.array(np.arange(1))[0]
        args = (dict(initial), force, dict(controls.source), dict(controls.parameter), step)
        if _shapes(args) not in self._traced:
            self._traced[_shapes(args)] = self.backend.trace(self._eager_step, *args)

    def _step(self, state: Any, force: Any, source: Any, parameter: Any, i: Any) -> dict[str, Any]:
        args = (dict(state), dict(force), dict(source), dict(parameter), i)
        return self._traced.get(_shapes(args), self._eager_step)(*args)

    def _eager_step(self, state: Any, force: Any, source: Any, parameter: Any, i: Any) -> dict[str, Any]:
        samples = next(iter(state.values())).shape[0]
        inputs = Inputs(
            force={n: self._acting(n).wrap(v) for n, v in force.items()},
            source={n: self._acting(n).wrap(v) for n, v in source.items()},
            parameter={n: self.parameter_layouts[n].wrap(v) for n, v in parameter.items()},
        )
        wrapped = {name: self.layouts[name].wrap(value) for name, value in state.items()}
        # Cast first: torch would make the product of an integer and a number single precision.
        new = self.pde.step(wrapped, inputs, self.backend.cast(i, "physics") * self.dt, self.dt)
        return {name: self.layouts[name].native(new[name], samples) for name in state}

    def _acting(self, name: str) -> Layout:
        """Layout of a force of one step, or of a source."""
        return self.action_layouts[name] if name in self.action_layouts else self.layouts[name]

    def _gates(self, flow: GradientFlow) -> tuple[dict[str, Any], dict[str, Any]]:
        """Gates that change per step, and those that do not."""
        per_step, fixed = {}, {}
        for name, value in (("alpha", flow.network_input), ("beta", flow.physics_state)):
            if isinstance(value, Sequence):
                value = self.backend.array(np.asarray(value, float), "physics")
            changes = not isinstance(value, int | float) and len(value.shape) == 1
            (per_step if changes else fixed)[name] = value
        return per_step, fixed

    def _gate(self, value: Any, gate: Any) -> Any:
        if isinstance(gate, int | float):
            if gate == 1:
                return value
            if gate == 0:
                return self.backend.stop_gradient(value)
            gate = self.backend.array(np.asarray(gate), "physics")
        return self.backend.gate(value, gate)


def map_arrays(function: Callable[..., Any], *trees: Any) -> Any:
    """The function applied to every array of (nested) mappings and tuples of one structure."""
    first = trees[0]
    if isinstance(first, Mapping):
        return {name: map_arrays(function, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, tuple):
        return tuple(map_arrays(function, *parts) for parts in zip(*trees, strict=True))
    return function(*trees)


def _shapes(args: Any) -> tuple[Any, ...]:
    state, force, source, parameter, _ = args
    groups = (state, force, source, parameter)
    return tuple(tuple((n, tuple(v.shape), str(v.dtype)) for n, v in group.items()) for group in groups)
