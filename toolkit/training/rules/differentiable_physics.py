"""Differentiable physics: backpropagation through the solver, the baseline of all other rules.

direction = ∂/∂θ Σ L(P(f(y*; θ)), y*)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolkit.core.options import Options
from toolkit.training.problem import Batch, Natives, Problem
from toolkit.training.rules.base import Update, UpdateRulePlugin


class DifferentiablePhysicsOptions(Options):
    """Differentiable physics has no options of its own."""


@dataclass(frozen=True)
class DifferentiablePhysics:
    """The rule, for open and closed loops."""

    def __call__(self, problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Update:
        b = problem.backend

        def objective(params: Natives) -> tuple[Any, Any]:
            x, after = problem.predict(params, buffers, batch, training=True)
            y = problem.observe(x, batch.context, problem.policy(params, buffers, batch.targets))
            return b.xp.sum(problem.loss(y, batch.targets)), (x, after)

        value, (x, after), direction = b.value_and_gradient(objective, params)
        return Update(direction, value, buffers=after, controls=x)


RULE = UpdateRulePlugin(
    name="dp",
    summary="gradient of the loss through network and physics (differentiable physics)",
    options=DifferentiablePhysicsOptions,
    build=lambda options: DifferentiablePhysics(),
    formula="direction = ∂/∂θ Σ L(P(f(y*; θ)), y*)",
)
