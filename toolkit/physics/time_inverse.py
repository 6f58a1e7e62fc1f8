"""Inverse solvers for controls at every time step, made of a local inverse of one step: a sweep backward in time.

With s_{t+1} = P_t(s_t, c_t) and increments Δs̃ that the objectives ask for (the Newton steps of the losses L_t in s_t):

    Δs_T = Δ_T
    (s̃_t, c̃_t) = P_t⁻¹(s_{t+1} + Δs_{t+1}; s_t, c_t)     a local inverse of the step
    Δs_t = (n (s̃_t − s_t) + Δ_t) / (n + 1)                        n objectives after t; for fields judged at t only
    Δs_t = s̃_t − s_t                                              for the others

The wishes of later objectives and of the one at t are *averaged*, each counting once: their sum would overshoot as
often as there are objectives that agree (for s_{t+1} = s_t, T times). Where the initial state is no control, Δs_0
cannot be granted, so a step inverse leaves nothing to it: it knows from `step` how many earlier controls share the
work.

Holl et al. 2022 describe training over time in prose; formula and average are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from phiml import math
from phiml.math import Tensor

from toolkit.physics.inverse import natives, tensors
from toolkit.physics.layout import Layout
from toolkit.physics.plugin import Inputs, InverseProblem, InverseSolver, State, StepInverse

Natives = Mapping[str, Any]


def invert_over_time(problem: InverseProblem, invert_step: StepInverse) -> InverseSolver:
    """The inverse solver that finds forces of every step, and initial states that are controls, step by step."""
    b, xp = problem.backend, problem.backend.xp

    def solve(x0: State, y0: State, y_target: State) -> dict[str, Tensor]:
        x = natives(x0, problem.controls)
        states = problem.trajectory(x, problem.context)
        forces = {**_under(problem.context, "force"), **_under(x, "force")}
        constant = {kind: _under({**problem.context, **x}, kind) for kind in ("source", "parameter")}
        wishes, judged = _wishes(problem, natives(y0, problem.observations), natives(y_target, problem.observations))
        samples = next(iter(states.values())).shape[0]

        def back(carry: Any, at: Any, constant: Any) -> tuple[Any, Any]:
            delta, count = _fuse(xp, carry["delta"], carry["count"], at)
            before, after = _wrapped(problem, at["before"]), _wrapped(problem, at["after"])
            target = _wrapped(problem, {name: at["after"][name] + delta[name] for name in delta})
            inputs = Inputs(
                force={name: force_layout(problem, name).wrap(value) for name, value in at["force"].items()},
                source={name: force_layout(problem, name).wrap(value) for name, value in constant["source"].items()},
                parameter={name: Layout().wrap(value) for name, value in constant["parameter"].items()},
            )
            step = math.reshaped_tensor(at["step"], [], convert=False)
            state, found = invert_step(before, inputs, after, target, step)
            new = {name: problem.states[name].native(state[name], samples) - at["before"][name] for name in delta}
            given = {n: force_layout(problem, n).native(value, samples) for n, value in found.items()}
            return {"delta": new, "count": count}, given

        order = _backward(problem, states, forces, wishes, judged)
        start = {
            "delta": {name: xp.zeros_like(value[:, 0]) for name, value in states.items()},
            "count": xp.sum(xp.zeros_like(order["objectives"][0])),
        }
        example = {key: _first(group) for key, group in order.items()}
        traced = problem.traced("time_inverse", back, start, example, constant)
        end, given = b.scan(lambda carry, at: traced(carry, at, constant), start, order, problem.steps)
        result = dict(x)
        for name, value in given.items():
            result[f"force.{name}"] = xp.moveaxis(_reversed(value, problem.steps), 0, 1)
        for name in problem.states:
            if f"initial.{name}" in result:
                result[f"initial.{name}"] = states[name][:, 0] + end["delta"][name]
        return tensors(result, problem.controls)

    return solve


def force_layout(problem: InverseProblem, name: str) -> Layout:
    """Layout of a force at one time step."""
    layout = problem.controls.get(f"force.{name}") or problem.states.get(name) or Layout()
    return Layout(layout.components, layout.cells)


def _wishes(problem: InverseProblem, y: Natives, target: Natives) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(Δ_t at t = 1 … T, (T, sample, …), and 1 at the times that are judged, else 0), each by field."""
    xp, steps = problem.backend.xp, problem.steps
    judged: dict[str, np.ndarray] = {}
    wishes: dict[str, Any] = {}
    for key, value in y.items():
        kind, _, name = key.partition(".")
        difference = target[key] - value
        if kind == "trajectory":
            wish = xp.moveaxis(difference, 1, 0)
            judged[name] = np.ones(steps)
        else:
            none = xp.zeros_like(difference)[None]
            wish = xp.concatenate([none] * (steps - 1) + [difference[None]], axis=0)
            judged[name] = np.maximum(judged.get(name, 0), np.arange(1, steps + 1) == steps)
        # Two objectives on one field at one time: the mean of their wishes.
        wishes[name] = wish if name not in wishes else _joined(xp, wishes[name], wish, steps)
    return wishes, judged


def _joined(xp: Any, first: Any, second: Any, steps: int) -> Any:
    """Wishes of `trajectory` and `final` on one field, averaged at the last time."""
    last = 0.5 * (first[-1:] + second[-1:])
    rest = (first + second)[: steps - 1]
    return xp.concatenate([rest, last], axis=0) if steps > 1 else last


def _fuse(xp: Any, delta: Natives, count: Any, at: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Mean of what `count` later objectives ask for and of the wish at this time, for fields that are judged now."""
    total = count + at["objectives"]
    share = 1 / xp.where(total == 0, xp.ones_like(total), total)
    wish, judged = at["wish"], at["judged"]
    fused = {n: v + judged[n] * share * (wish[n] - v) if n in wish else v for n, v in delta.items()}
    return fused, total


def _backward(
    problem: InverseProblem, states: Natives, forces: Natives, wishes: Natives, judged: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What each step needs, along the leading axis, the last step first."""
    b, steps = problem.backend, problem.steps
    by_time = {name: b.xp.moveaxis(value, 1, 0) for name, value in states.items()}
    groups = {
        "before": {name: value[:-1] for name, value in by_time.items()},
        "after": {name: value[1:] for name, value in by_time.items()},
        "force": {name: b.xp.moveaxis(value, 1, 0) for name, value in forces.items()},
        "wish": dict(wishes),
    }
    reversed_groups = {
        kind: {name: _reversed(value, steps) for name, value in group.items()} for kind, group in groups.items()
    }
    return {
        **reversed_groups,
        "judged": {name: b.array(times[::-1].copy(), "physics") for name, times in judged.items()},
        "objectives": b.array(np.max(list(judged.values()), axis=0)[::-1].copy(), "physics"),
        "step": b.array(np.arange(steps)[::-1].copy(), "physics"),
    }


def _first(group: Any) -> Any:
    return {name: value[0] for name, value in group.items()} if isinstance(group, Mapping) else group[0]


def _reversed(array: Any, steps: int) -> Any:
    # Negative strides do not exist on torch.
    return array[np.arange(steps)[::-1].copy()]


def _wrapped(problem: InverseProblem, arrays: Natives) -> dict[str, Tensor]:
    return {name: problem.states[name].wrap(value) for name, value in arrays.items()}


def _under(arrays: Natives, kind: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(kind + ".")}
