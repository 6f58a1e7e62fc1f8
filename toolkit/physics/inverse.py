"""Flat, per-sample views of an inverse problem, for solvers that know nothing of fields.

x is (B, n): all controls of a sample, raveled and concatenated in the order of the problem's keys; y is (B, m).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from phiml.math import Tensor

from toolkit.core.backend import Backend
from toolkit.physics.layout import SAMPLE, Layout
from toolkit.physics.plugin import InverseProblem, State


def natives(state: State, layouts: Mapping[str, Layout]) -> dict[str, Any]:
    """Native arrays of the tensors, by key."""
    shape = next(iter(state.values())).shape
    samples = int(shape.get_size(SAMPLE) or 1) if SAMPLE in shape else 1
    return {key: layout.native(state[key], samples) for key, layout in layouts.items()}


def tensors(arrays: Mapping[str, Any], layouts: Mapping[str, Layout]) -> dict[str, Tensor]:
    """PhiML tensors around native arrays, by key."""
    return {key: layout.wrap(arrays[key]) for key, layout in layouts.items()}


def flatten(arrays: Mapping[str, Any], layouts: Mapping[str, Layout], backend: Backend) -> Any:
    """(B, n) from native arrays (B, …) by key."""
    flat = [backend.xp.reshape(arrays[key], (arrays[key].shape[0], -1)) for key in layouts]
    return flat[0] if len(flat) == 1 else backend.xp.concatenate(flat, axis=1)


def unflatten(flat: Any, layouts: Mapping[str, Layout], backend: Backend) -> dict[str, Any]:
    """Native arrays by key from (B, n)."""
    result, start = {}, 0
    for key, layout in layouts.items():
        part = flat[:, start : start + layout.size]
        result[key] = backend.xp.reshape(part, (flat.shape[0], *layout.shape))
        start += layout.size
    return result


def size(layouts: Mapping[str, Layout]) -> int:
    """n, the number of scalars per sample."""
    return sum(layout.size for layout in layouts.values())


def flat_loss(problem: InverseProblem) -> Callable[[Any, Any, Any], Any]:
    """(x (B, n), targets, context) -> L(P(x), y*) (B,)."""

    def loss(x: Any, targets: Any, context: Any) -> Any:
        return problem.loss(unflatten(x, problem.controls, problem.backend), targets, context)

    return loss


def flat_observe(problem: InverseProblem) -> Callable[[Any], Any]:
    """x (B, n) -> y (B, m) for the whole batch."""

    def observe(x: Any) -> Any:
        y = problem.observe(unflatten(x, problem.controls, problem.backend), problem.context)
        return flatten(y, problem.observations, problem.backend)

    return observe


def flat_value_and_gradient(problem: InverseProblem, targets: Any) -> Callable[[Any], tuple[Any, Any]]:
    """x (B, n) -> (L (B,), ∂L/∂x (B, n)); samples are independent, so one backward pass serves all."""
    loss, b = flat_loss(problem), problem.backend

    def summed(x: Any) -> tuple[Any, Any]:
        values = loss(x, targets, problem.context)
        return b.xp.sum(values), values

    def evaluate(x: Any) -> tuple[Any, Any]:
        _, values, gradient = b.value_and_gradient(summed, x)
        return values, gradient

    return evaluate


def from_flat(problem: InverseProblem, x: Any) -> dict[str, Tensor]:
    """Controls as PhiML tensors from (B, n)."""
    return tensors(unflatten(x, problem.controls, problem.backend), problem.controls)


def to_flat(problem: InverseProblem, x: State) -> Any:
    """(B, n) from controls as PhiML tensors."""
    return flatten(natives(x, problem.controls), problem.controls, problem.backend)
