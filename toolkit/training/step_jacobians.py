"""∂y/∂x of a rollout from the Jacobians of its steps, all taken at once: for backends whose cost is that of calls.

    A_t = ∂s_{t+1}/∂(s_t, c_t),  t = 0 … T−1, on the states that a rollout without gradient has met,
    λ_T = ∂y/∂s_T,     ∂y/∂c_t = λ_{t+1} ∂s_{t+1}/∂c_t,     λ_t = λ_{t+1} ∂s_{t+1}/∂s_t

That is the chain rule, and exact. Differentiating T steps as one batch takes as many calls as one step, and T products
of small matrices follow; a backward pass through a recorded rollout takes T times the calls of a step, which on torch
cost more than their arithmetic. In exchange A holds |s| (|s| + |c_t|) numbers per sample and step, and takes |s|
pullbacks in place of as many as there are outputs: `applies` says where that is a good bargain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.physics.inverse import flatten, size, unflatten
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import Controls
from toolkit.training.problem import Natives, Problem

FEWEST_STEPS = 8
"""Below, a backward pass through the rollout costs no more."""
MEMORY = 2**28
"""Bytes that the Jacobians of all steps may take."""


def applies(problem: Problem, keys: tuple[str, ...], samples: int) -> bool:
    """Whether ∂y/∂x can and should be taken by steps, for these controls in open loop."""
    rollout, forces = problem.rollout, _per_step(problem, keys)
    state, outputs = size(rollout.layouts), size(problem.observations)
    bytes_needed = 8 * samples * rollout.steps * state * (state + size(forces))
    return (
        not problem.backend.compiles
        and not problem.loop
        and problem.plugin.traceable
        and rollout.steps >= FEWEST_STEPS
        and all(key.startswith("final.") for key in problem.observations)
        and all(key.startswith(("initial.", "force.")) for key in keys)
        and state <= 2 * outputs
        and bytes_needed <= MEMORY
    )


def value_and_jacobian(problem: Problem, x: Any, layouts: Mapping[str, Layout], context: Natives) -> tuple[Any, Any]:
    """(y (B, d), ∂y/∂x (B, d, n)) at x (B, n), constants."""
    b, rollout = problem.backend, problem.rollout
    controls = unflatten(x, layouts, b)
    trajectory = b.without_gradient(lambda: problem.simulate(controls, context, record=True))
    met, last = problem.states_met(trajectory, controls, context), trajectory.final
    samples, steps = x.shape[0], rollout.steps
    jacobians = _of_steps(problem, met, controls, context)

    def read(flat: Any) -> Any:
        final = unflatten(flat, rollout.layouts, b)
        y = {key: final[key.partition(".")[2]] for key in problem.observations}
        return flatten(y, problem.observations, b)

    y, adjoint = b.value_and_pullbacks(read, flatten(last, rollout.layouts, b), True)
    adjoint = b.xp.moveaxis(adjoint, 0, 1)
    state, forced = size(rollout.layouts), []
    for t in reversed(range(steps)):
        both = b.xp.matmul(adjoint, jacobians[t])
        adjoint = both[:, :, :state]
        forced.append(both[:, :, state:])
    found = {f"initial.{name}": part for name, part in _split(b, adjoint, rollout.layouts).items()}
    forces = _per_step(problem, tuple(layouts))
    if forces:
        # (T, B, d, |c_t|) in the order of time -> (B, d, T, |c_t|)
        parts = _split(b, b.xp.stack(forced[::-1]), forces)
        found |= {key: b.xp.moveaxis(part, 0, 2) for key, part in parts.items()}
    rows = [b.xp.reshape(found[key], (samples, y.shape[1], -1)) for key in layouts]
    return y, rows[0] if len(rows) == 1 else b.xp.concatenate(rows, axis=2)


def _of_steps(problem: Problem, met: Natives, controls: Natives, context: Natives) -> Any:
    """A (T, B, |s|, |s| + |c|) at the states met (B, T, …)."""
    b, rollout = problem.backend, problem.rollout
    unknown = _per_step(problem, tuple(controls))
    acting = {**context, **controls}
    forces = {key: value for key, value in acting.items() if key.startswith("force.") and key not in unknown}
    given = {key: b.xp.moveaxis(value, 1, 0) for key, value in forces.items()}
    source, parameter = _under(acting, "source"), _under(acting, "parameter")
    single = replace(rollout, steps=1, rematerialise=None)
    layouts = {**rollout.layouts, **unknown}
    parts = {**met, **{key: controls[key] for key in unknown}}
    steps, samples = rollout.steps, next(iter(met.values())).shape[0]
    # (B, T, …) -> (T·B, …): one row per step and sample.
    rows = [b.xp.reshape(b.xp.moveaxis(parts[name], 1, 0), (steps * samples, -1)) for name in layouts]
    at = rows[0] if len(rows) == 1 else b.xp.concatenate(rows, axis=1)

    def one(flat: Any, known: Any, i: Any) -> Any:
        part = unflatten(flat, layouts, b)
        acts = {**known, **{key: part[key] for key in unknown}}
        forces = {key.partition(".")[2]: value[:, None] for key, value in acts.items()}
        state = {name: part[name] for name in rollout.layouts}
        after = single(state, Controls(forces, source, parameter), start=i).final
        return flatten(after, rollout.layouts, b)

    def every(flat: Any) -> Any:
        each = b.xp.reshape(flat, (steps, samples, flat.shape[1]))
        new = b.vmap(one)(each, given, b.array(np.arange(steps)))
        return b.xp.reshape(new, (steps * samples, -1))

    _, pulled = b.value_and_pullbacks(every, at, True)
    return b.xp.reshape(b.xp.moveaxis(pulled, 0, 1), (steps, samples, pulled.shape[0], pulled.shape[2]))


def _per_step(problem: Problem, keys: tuple[str, ...]) -> dict[str, Layout]:
    """Layouts of one step of the unknown forces, by key."""
    layouts = {key: problem.control_layouts[key] for key in keys if key.startswith("force.")}
    return {key: Layout(layout.components, layout.cells) for key, layout in layouts.items()}


def _split(backend: Any, rows: Any, layouts: Mapping[str, Layout]) -> dict[str, Any]:
    """(…, n) -> (…, n_key) by key."""
    result, start = {}, 0
    for key, layout in layouts.items():
        result[key] = rows[..., start : start + layout.size]
        start += layout.size
    return result


def _under(arrays: Natives, kind: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(kind + ".")}
