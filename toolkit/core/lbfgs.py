"""Batched L-BFGS: many independent minimisations at once, each with its own history, line search and end.

Direction by the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4) with H₀ = sᵀy / yᵀy of the newest
pair; step length by bisection and doubling until the weak Wolfe conditions hold (Lewis & Overton 2013),

    f(x + t d) ≤ f(x) + c₁ t gᵀd   and   g(x + t d)ᵀd ≥ c₂ gᵀd,

which makes sᵀy positive; where decreases drown in the rounding of f, the first is replaced by its form for
quadratics, g(x + t d)ᵀd ≤ (2 c₁ - 1) gᵀd (Hager & Zhang 2005). Samples never mix: finished ones are frozen by
masks while the others go on, and a value that is not finite counts as too high. Written on a small array
namespace, it runs on torch and traces on JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

Objective = Callable[[Any], tuple[Any, Any]]
"""x (B, n) -> (values (B,), gradients (B, n)); sample i depends on row i alone."""

SUFFICIENT_DECREASE = 1e-4  # c₁
CURVATURE = 0.9  # c₂, the usual choice for quasi-Newton directions
ROUND_OFF = 4.0
"""Machine epsilons of |f| by which a value may rise in one step and still count as equal."""
MIN_COSINE = 1e-10
"""Pairs whose s and y are closer to orthogonal say nothing about the curvature and are not kept."""


class Minimum(NamedTuple):
    """Result per sample; `values` is never above the value at the start."""

    x: Any
    values: Any
    iterations: Any
    converged: Any
    """Whether the largest absolute gradient component is within the tolerance."""


class Memory(NamedTuple):
    """The last m pairs per sample, newest last; empty places are zero."""

    steps: Any
    """s, (m, B, n)."""
    differences: Any
    """y, (m, B, n)."""
    inverse_products: Any
    """1 / sᵀy, (m, B)."""


class _Point(NamedTuple):
    x: Any
    value: Any
    gradient: Any


class _Search(NamedTuple):
    best: _Point
    t: Any
    low: Any
    high: Any
    searching: Any
    trials: Any


class _State(NamedTuple):
    point: _Point
    memory: Memory
    iterations: Any
    active: Any
    count: Any


def python_loop(condition: Callable[[Any], Any], body: Callable[[Any], Any], carry: Any) -> Any:
    """body repeated while condition holds; `jax.lax.while_loop` is its compiled form."""
    while bool(condition(carry)):
        carry = body(carry)
    return carry


def minimise(
    value_and_gradient: Objective,
    x0: Any,
    max_iterations: int,
    tolerance: float,
    history: int = 10,
    *,
    xp: Any,
    trials: int = 30,
    while_loop: Callable[..., Any] = python_loop,
) -> Minimum:
    """Minimise B problems from x0 (B, n), each until max |gradient| ≤ tolerance or nothing lower is found."""
    point = _Point(x0, *value_and_gradient(x0))
    usable = xp.isfinite(point.value) & xp.isfinite(xp.sum(point.gradient, axis=-1))
    state = _State(
        point,
        empty_memory(x0, history, xp),
        iterations=_integers(point.value, xp),
        active=usable & ~_converged(point, tolerance, xp),
        count=xp.sum(_integers(point.value, xp)),
    )

    def body(state: _State) -> _State:
        point, memory, moved, retry = iterate(
            value_and_gradient, state.point, state.memory, state.active, trials, xp, while_loop
        )
        active = (moved | retry) & ~_converged(point, tolerance, xp)
        return _State(point, memory, state.iterations + state.active, active, state.count + 1)

    state = while_loop(lambda s: xp.any(s.active) & (s.count < max_iterations), body, state)
    # Steps within round-off may have raised the value of a sample that started at its minimum.
    last = _where(state.point.value <= point.value, state.point, point, xp)
    return Minimum(last.x, last.value, state.iterations, _converged(last, tolerance, xp))


def empty_memory(x: Any, history: int, xp: Any) -> Memory:
    """No pairs yet, for x (B, n)."""
    pairs = xp.stack([xp.zeros_like(x)] * history)
    return Memory(pairs, pairs, xp.sum(pairs, axis=-1))


def iterate(
    value_and_gradient: Objective,
    point: _Point,
    memory: Memory,
    active: Any,
    trials: int,
    xp: Any,
    while_loop: Callable[..., Any],
) -> tuple[_Point, Memory, Any, Any]:
    """One iteration of the active samples: (point, memory, which moved, which failed but may retry).

    A failed search with a history clears it, so that the next iteration follows the gradient.
    """
    d = direction(point.gradient, memory, xp)
    slope = xp.sum(d * point.gradient, axis=-1)
    descends = xp.isfinite(slope) & (slope < 0)
    d = xp.where(descends[:, None], d, -point.gradient)
    slope = xp.where(descends, slope, -xp.sum(point.gradient * point.gradient, axis=-1))
    known = memory.inverse_products[-1] > 0
    # Without curvature the gradient's length means nothing: the first trial moves at most by one unit.
    length = xp.sqrt(xp.sum(d * d, axis=-1))
    one = xp.ones_like(slope)
    first = xp.where(known, one, one / xp.maximum(length, one))
    found, low = _line_search(value_and_gradient, point, d, slope, first, active, trials, xp, while_loop)
    moved = active & (low > 0)
    failed = active & ~moved
    return found, _remember(memory, point, found, moved, failed, xp), moved, failed & known


def direction(gradient: Any, memory: Memory, xp: Any) -> Any:
    """-H g by the two-loop recursion, (B, n); -g where nothing is remembered."""
    steps, differences, inverse = memory
    q, alphas = gradient, []
    for i in reversed(range(steps.shape[0])):
        alphas.append(inverse[i] * xp.sum(steps[i] * q, axis=-1))
        q = q - alphas[-1][:, None] * differences[i]
    square = xp.sum(differences[-1] * differences[-1], axis=-1)
    known = inverse[-1] > 0
    one = xp.ones_like(square)
    scale = xp.where(known, one / xp.where(known, inverse[-1] * square, one), one)
    q = scale[:, None] * q
    for i in range(steps.shape[0]):
        beta = inverse[i] * xp.sum(differences[i] * q, axis=-1)
        q = q + (alphas[-1 - i] - beta)[:, None] * steps[i]
    return -q


def _line_search(
    value_and_gradient: Objective,
    start: _Point,
    d: Any,
    slope: Any,
    first: Any,
    active: Any,
    trials: int,
    xp: Any,
    while_loop: Callable[..., Any],
) -> tuple[_Point, Any]:
    """(best point, its step length per sample); the length is 0 where no lower value was found."""
    zero = xp.zeros_like(slope)
    noise = ROUND_OFF * _epsilon(slope) * xp.abs(start.value)

    def body(search: _Search) -> _Search:
        x = xp.where(search.searching[:, None], start.x + search.t[:, None] * d, search.best.x)
        value, gradient = value_and_gradient(x)
        finite = xp.isfinite(value) & xp.isfinite(xp.sum(gradient, axis=-1))
        end_slope = xp.sum(gradient * d, axis=-1)
        lower = value <= start.value + SUFFICIENT_DECREASE * search.t * slope
        # Near the minimum f is all round-off, while its slope still tells whether t is short enough.
        shorter = (2 * SUFFICIENT_DECREASE - 1) * slope >= end_slope
        lower = lower | (shorter & (value <= start.value + noise))
        lower = search.searching & finite & lower
        flat = end_slope >= CURVATURE * slope
        best = _where(lower, _Point(x, value, gradient), search.best, xp)
        low = xp.where(lower, search.t, search.low)
        high = xp.where(search.searching & ~lower, search.t, search.high)
        bounded = xp.isfinite(high)
        t = xp.where(bounded, 0.5 * (low + xp.where(bounded, high, low)), 2 * low)
        return _Search(best, t, low, high, search.searching & ~(lower & flat), search.trials + 1)

    search = _Search(start, first, zero, zero + float("inf"), active, xp.sum(_integers(slope, xp)))
    search = while_loop(lambda s: xp.any(s.searching) & (s.trials < trials), body, search)
    return search.best, search.low


def _remember(memory: Memory, before: _Point, after: _Point, moved: Any, failed: Any, xp: Any) -> Memory:
    s, y = after.x - before.x, after.gradient - before.gradient
    product = xp.sum(s * y, axis=-1)
    scale = xp.sqrt(xp.sum(s * s, axis=-1) * xp.sum(y * y, axis=-1))
    keep = moved & (product > MIN_COSINE * scale)
    inverse = xp.where(keep, 1 / xp.where(keep, product, xp.ones_like(product)), xp.zeros_like(product))

    def shifted(old: Any, new: Any, mask: Any, gone: Any) -> Any:
        pushed = xp.where(mask, xp.concatenate([old[1:], new[None]]), old)
        return xp.where(gone, xp.zeros_like(old), pushed)

    mask, gone = keep[None, :, None], failed[None, :, None]
    return Memory(
        shifted(memory.steps, s, mask, gone),
        shifted(memory.differences, y, mask, gone),
        shifted(memory.inverse_products, inverse, keep[None], failed[None]),
    )


def _where(mask: Any, new: _Point, old: _Point, xp: Any) -> _Point:
    column = mask[:, None]
    return _Point(
        xp.where(column, new.x, old.x),
        xp.where(mask, new.value, old.value),
        xp.where(column, new.gradient, old.gradient),
    )


def _converged(point: _Point, tolerance: float, xp: Any) -> Any:
    return xp.max(xp.abs(point.gradient), axis=-1) <= tolerance


def _epsilon(like: Any) -> float:
    """Machine epsilon of an array's precision."""
    return float(np.finfo(str(like.dtype).rpartition(".")[-1]).eps)


def _integers(like: Any, xp: Any) -> Any:
    """Integer zeros of the shape of `like`."""
    return xp.sum(xp.zeros_like(like)[:, None] > 0, axis=-1)


@dataclass(frozen=True)
class LbfgsOptimizer:
    """L-BFGS as an optimizer: one iteration per step on the objective of that step.

    The gradient is taken anew at each step, so a pair always compares gradients of one objective, even if
    batches change.
    """

    xp: Any
    history: int = 10
    trials: int = 30
    while_loop: Callable[..., Any] = python_loop
    needs_objective: ClassVar[bool] = True

    def init(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The state before the first step."""
        x = self._flat(params)
        memory = empty_memory(x, self.history, self.xp)
        return {"step": self.xp.sum(_integers(x[:, 0], self.xp)), **memory._asdict()}

    def update_with(
        self,
        value_and_direction: Callable[[Mapping[str, Any]], tuple[Any, Mapping[str, Any]]],
        state: dict[str, Any],
        params: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(new params, new state); params stay as they are where no lower value is found."""

        def objective(x: Any) -> tuple[Any, Any]:
            value, gradient = value_and_direction(self._tree(x, params))
            return self.xp.reshape(value, (1,)), self._flat({name: gradient[name] for name in params})

        x = self._flat(params)
        start = _Point(x, *objective(x))
        active = self.xp.isfinite(start.value)
        memory = Memory(**{name: state[name] for name in Memory._fields})
        found, memory, _, _ = iterate(objective, start, memory, active, self.trials, self.xp, self.while_loop)
        return self._tree(found.x, params), {"step": state["step"] + 1, **memory._asdict()}

    def _flat(self, tree: Mapping[str, Any]) -> Any:
        return self.xp.concatenate([self.xp.reshape(tree[name], (1, -1)) for name in sorted(tree)], axis=1)

    def _tree(self, x: Any, like: Mapping[str, Any]) -> dict[str, Any]:
        tree, start = {}, 0
        for name in sorted(like):
            stop = start + self.xp.reshape(like[name], (-1,)).shape[0]
            tree[name] = self.xp.reshape(x[0, start:stop], tuple(like[name].shape))
            start = stop
        return tree
