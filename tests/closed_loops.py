"""Directions of closed loops with gates on the gradient, for tests that compare them with closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numeric_cases import Case

from toolkit.physics.rollout import FULL, PHYSICS, STOPPED, GradientFlow

FLOWS = {"G": FULL, "M": PHYSICS, "S": STOPPED}


def direction(case: Case, flow: GradientFlow) -> Callable[[Any], tuple[float, np.ndarray]]:
    """θ -> (L, V) of the only parameter of a network in the loop on the validation samples, compiled once."""
    problem, batch, b = case.problem, case.validation, case.problem.backend
    ((name, like),) = case.params.items()

    def loss(params: Any) -> tuple[Any, Any]:
        y = problem.observe({}, batch.context, problem.policy(params, {}, batch.targets), flow)
        return b.xp.sum(problem.loss(y, batch.targets)), ()

    run = b.compile(lambda params: b.value_and_gradient(loss, params)[::2], case.params)

    def at(theta: Any) -> tuple[float, np.ndarray]:
        value, found = run({name: b.array(np.reshape(theta, tuple(like.shape)).astype(float), "network")})
        return float(value), b.numpy(found[name]).ravel()

    return at
