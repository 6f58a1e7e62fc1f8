"""Many time steps of a PDE, open or closed loop, with gates on two edges of the gradient.

    o_i = gate(s_i, α_i),   c_i = policy(o_i),   s_{i+1} = step(gate(s_i, β_i), c_i)

A gate is the identity forward; backward it multiplies by its value (Schnell & Thuerey 2024, section 3: α = 0 stops
the path through the controller's input, β = 0 the path through the physics state). The loop is rolled on JAX; on
torch one traced step is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.core.backend import Backend
from toolkit.physics.layout import Layout
from toolkit.physics.plugin import PDE, Inputs

Natives = Mapping[str, Any]


@dataclass(frozen=True)
class GradientFlow:
    """Gates α (state → controller input) and β (state → next state): numbers in [0, 1], or one per step."""

    network_input: float | Sequence[float] = 1.0
    physics_state: float | Sequence[float] = 1.0


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
        steps = b.array(np.arange(self.steps)) + start
        forces = {name: b.xp.moveaxis(value, 1, 0) for name, value in controls.force.items()}
        gates, fixed = self._gates(flow)
        moved = {name: b.xp.moveaxis(value, 1, 0) for name, value in (offsets or {}).items()}
        later = {name: value[1:] for name, value in moved.items()}
        initial = {name: value + moved[name][0] if name in moved else value for name, value in initial.items()}

        def body(state: dict[str, Any], x: Any) -> tuple[dict[str, Any], Any]:
            i, force, gate_values, offset = x
            alpha = gate_values.get("alpha", fixed["alpha"])
            beta = gate_values.get("beta", fixed["beta"])
            if policy is not None:
                force = {**force, **policy({k: self._gate(v, alpha) for k, v in state.items()}, i)}
            gated = {k: self._gate(v, beta) for k, v in state.items()}
            new = self._step(gated, force, controls.source, controls.parameter, i)
            new = {k: v + offset[k] if k in offset else v for k, v in new.items()}
            return new, ((new if record else {}), (force if policy is not None else {}))

        final, (states, used) = b.scan(body, initial, (steps, forces, gates, later), self.steps)
        by_sample = {name: b.xp.moveaxis(value, 0, 1) for name, value in states.items()}
        return Trajectory(final, by_sample, {n: b.xp.moveaxis(v, 0, 1) for n, v in used.items()})

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

    def _gates(self, flow: GradientFlow) -> tuple[dict[str, Any], dict[str, float]]:
        """Gates that change per step as arrays, and those that do not as numbers."""
        per_step, fixed = {}, {"alpha": 1.0, "beta": 1.0}
        for name, value in (("alpha", flow.network_input), ("beta", flow.physics_state)):
            if isinstance(value, Sequence):
                per_step[name] = self.backend.array(np.asarray(value, float), "physics")
            else:
                fixed[name] = value
        return per_step, fixed

    def _gate(self, value: Any, gate: Any) -> Any:
        if isinstance(gate, int | float):
            if gate == 1:
                return value
            if gate == 0:
                return self.backend.stop_gradient(value)
        return gate * value + (1 - gate) * self.backend.stop_gradient(value)


def _shapes(args: Any) -> tuple[Any, ...]:
    state, force, source, parameter, _ = args
    groups = (state, force, source, parameter)
    return tuple(tuple((n, tuple(v.shape), str(v.dtype)) for n, v in group.items()) for group in groups)
