"""Supervised training: the network is pulled to the true control, the physics is only measured.

direction = ∂/∂θ Σ ½ |f(y*; θ) − x*|²
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolkit.core.options import Options
from toolkit.training.distances import half_squared_distance
from toolkit.training.problem import Batch, Natives, Problem
from toolkit.training.rules.base import Update, UpdateRulePlugin


class SupervisedOptions(Options):
    """Supervised training has no options of its own."""


@dataclass(frozen=True)
class Supervised:
    """The rule; `P` is evaluated for the reported loss alone."""

    def __call__(self, problem: Problem, params: Natives, buffers: Natives, batch: Batch) -> Update:
        b = problem.backend

        def objective(params: Natives) -> tuple[Any, Any]:
            x, after = problem.predict(params, buffers, batch, training=True)
            return b.xp.sum(half_squared_distance(b, x, batch.references)), (x, after)

        value, (x, after), direction = b.value_and_gradient(objective, params)
        y = b.without_gradient(problem.observe, x, batch.context)
        loss = b.xp.sum(problem.loss(y, batch.targets))
        return Update(direction, loss, objective=value, buffers=after, controls=x)


RULE = UpdateRulePlugin(
    name="supervised",
    summary="gradient of ½|f(y*) − x*|²; needs the true control",
    options=SupervisedOptions,
    build=lambda options: Supervised(),
    needs=frozenset({"control_reference", "network"}),
    formula="direction = ∂/∂θ Σ ½ |f(y*; θ) − x*|²",
)
