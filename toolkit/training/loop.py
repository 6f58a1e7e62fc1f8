"""The training loop: batch → rule → direction → optimizer → parameters, one record per step.

What happens on the side (validation, checkpoints, files, progress) belongs to the caller, who sees every step:

    for state, record in train(trainer, state, batches, steps=50): …

Losses of records are means over the batch; directions are gradients of sums over the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from toolkit.core.errors import DivergenceError
from toolkit.core.optimizers import euclidean_norm
from toolkit.training.data import Batches, tree_shapes
from toolkit.training.distances import half_squared_distance
from toolkit.training.problem import Batch, Natives, Problem, batch_from_tree
from toolkit.training.rules.base import Update, UpdateRule

REMEDY = (
    "Lower update.optimizer.learning_rate or update.step_size, limit the direction with update.clip, or set "
    "run.precision to float64"
)
"""What to do where a metric is not finite, unless the rule knows better."""


@dataclass(frozen=True)
class TrainState:
    """Everything that training changes; native arrays by name."""

    params: Natives
    buffers: Natives
    optimizer: Natives
    step: int = 0
    """Number of updates done."""
    seconds: float = 0.0
    """Training time so far, compilation not counted."""


@dataclass(frozen=True)
class Trainer:
    """A rule and an optimizer on a problem, compiled once per shape of batch."""

    problem: Problem
    rule: UpdateRule
    optimizer: Any
    clip: Callable[[Natives], Natives] = lambda direction: direction
    inner_updates: int = 1
    searches: bool = False
    """Whether the optimizer evaluates the objective itself (a line search)."""
    _compiled: dict[str, Any] = field(default_factory=dict, repr=False)

    def start(self, params: Natives, buffers: Natives) -> TrainState:
        """The state before the first update."""
        return TrainState(dict(params), dict(buffers), self.optimizer.init(dict(params)))

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, float]]:
        """The state after one update and what was measured; raises DivergenceError on non-finite numbers."""
        b, tree = self.problem.backend, batch.tree()
        function = self._function(state, batch)
        start = time.perf_counter()
        params, buffers, optimizer, measured = function(state.params, state.buffers, state.optimizer, tree)
        b.synchronize(params)
        seconds = time.perf_counter() - start
        metrics = {name: float(value) for name, value in measured.items()}
        remedies = getattr(self.rule, "remedies", {})
        # What a rule knows a remedy for comes first: compiled programs give names back in alphabetical order.
        ordered = dict.fromkeys(("train_loss", *remedies, *metrics))
        bad = next((name for name in ordered if name in metrics and not math.isfinite(metrics[name])), None)
        if bad is not None:
            where = _bad_sample(self.problem, state, batch)
            remedy = remedies.get(bad, REMEDY)
            raise DivergenceError(f"step {state.step + 1}: {bad} is {metrics[bad]}: {where}. {remedy}")
        metrics["step_seconds"] = seconds
        return replace(state, params=params, buffers=buffers, optimizer=optimizer, step=state.step + 1), metrics

    def _function(self, state: TrainState, batch: Batch) -> Callable[..., Any]:
        """The compiled step for batches of this shape."""
        key = str(tree_shapes(batch))
        if key not in self._compiled:
            self.problem.prepare(batch)
            self._compiled[key] = self.problem.backend.compile(
                self.update, state.params, state.buffers, state.optimizer, batch.tree()
            )
        return self._compiled[key]

    @property
    def update(self) -> Callable[..., tuple[Any, ...]]:
        """(params, buffers, optimizer, batch as a tree) -> (params, buffers, optimizer, metrics), not compiled."""
        return self._search if self.searches else self._update

    def _update(self, params: Natives, buffers: Natives, optimizer: Natives, tree: Any) -> tuple[Any, ...]:
        batch = batch_from_tree(tree)
        update = self.rule(self.problem, params, buffers, batch)
        measured = self._measure(update, batch)
        params, optimizer = self.optimizer.update(self.clip(update.direction), optimizer, params)
        for _ in range(self.inner_updates - 1):
            again = self.rule.repeat(self.problem, params, update.buffers, batch, update.frozen)  # type: ignore[attr-defined]
            params, optimizer = self.optimizer.update(self.clip(again.direction), optimizer, params)
        return params, dict(update.buffers), optimizer, measured

    def _search(self, params: Natives, buffers: Natives, optimizer: Natives, tree: Any) -> tuple[Any, ...]:
        batch = batch_from_tree(tree)
        update = self.rule(self.problem, params, buffers, batch)

        def value_and_direction(params: Natives) -> tuple[Any, Any]:
            found = self.rule(self.problem, params, buffers, batch)
            return found.loss if found.objective is None else found.objective, dict(found.direction)

        params, optimizer = self.optimizer.update_with(value_and_direction, optimizer, params)
        return params, dict(update.buffers), optimizer, self._measure(update, batch)

    def _measure(self, update: Update, batch: Batch) -> dict[str, Any]:
        b = self.problem.backend
        samples = _samples(update.controls, batch)
        measured = {
            "train_loss": update.loss / samples,
            "direction_norm": euclidean_norm(update.direction, b.xp),
        }
        if update.controls and set(update.controls) <= set(batch.references):
            error = half_squared_distance(b, update.controls, batch.references)
            measured["train_control_error"] = b.xp.mean(error)
        for name, value in self.problem.control_metrics(update.controls, batch).items():
            measured[f"train_{name}"] = b.xp.mean(value)
        return {**measured, **update.metrics}


def _samples(controls: Natives, batch: Batch) -> int:
    for group in (controls, *batch.tree().values()):
        for value in group.values():
            return int(value.shape[0])
    return 1


def _bad_sample(problem: Problem, state: TrainState, batch: Batch) -> str:
    """The first sample of the batch whose loss or control is not finite before the step."""
    b = problem.backend
    found = b.without_gradient(lambda *args: _judged(problem, *args), state.params, state.buffers, batch.tree())
    for name, values in found.items():
        rows = np.isfinite(b.numpy(values))
        rows = rows.reshape(len(rows), -1).all(axis=1)
        if not rows.all():
            return f"{name} of sample {int(np.argmin(rows))} of the batch, counted from 0, is not finite"
    return "loss and controls of all samples are finite before this step, its direction is not"


def _judged(problem: Problem, params: Natives, buffers: Natives, tree: Any) -> dict[str, Any]:
    found = evaluate(problem, params, buffers, batch_from_tree(tree))
    return {**found.controls, "the loss": found.loss}


@dataclass(frozen=True)
class Evaluation:
    """A forward pass without an update."""

    loss: Any
    """L(y, y*) per sample, native."""
    control_error: Any | None
    """½ Σ (x − x*)² per sample, native; None where x* is unknown."""
    control_metrics: Natives
    """The plugin's metrics per sample, by name."""
    controls: Natives
    final: Natives
    states: Natives
    initial: Natives


def evaluate(problem: Problem, params: Natives, buffers: Natives, batch: Batch, record: bool = False) -> Evaluation:
    """Predictions, trajectories and errors on a batch, with the running statistics of the networks."""
    b = problem.backend
    x, _ = problem.predict(params, buffers, batch, training=False)
    policy = problem.policy(params, buffers, batch.targets)
    trajectory = problem.simulate(x, batch.context, policy, record=record or problem.records)
    controls = {**x, **{f"force.{name}": value for name, value in trajectory.forces.items()}}
    y = problem.read(trajectory, x)
    known = bool(x) and set(x) <= set(batch.references)
    error = half_squared_distance(b, x, batch.references) if known else None
    loss = problem.loss(y, batch.targets)
    initial = problem.initial_state(x, batch.context)
    metrics = problem.control_metrics(x, batch)
    return Evaluation(loss, error, metrics, controls, trajectory.final, trajectory.states, initial)


def train(
    trainer: Trainer, state: TrainState, batches: Batches, steps: int | None, time_limit: float | None = None
) -> Iterator[tuple[TrainState, dict[str, float]]]:
    """States and records until `steps` updates are done or `time_limit` seconds of training have passed."""
    while unfinished(state.step, state.seconds, steps, time_limit):
        state, record = timed_step(trainer, state, batches)
        yield state, record


def unfinished(step: int, seconds: float, steps: int | None, time_limit: float | None) -> bool:
    """Whether there are updates to do after `step` updates in so many seconds of training."""
    return (steps is None or step < steps) and (time_limit is None or seconds < time_limit)


def timed_step(trainer: Trainer, state: TrainState, batches: Batches) -> tuple[TrainState, dict[str, float]]:
    """(state, record) of one update; the clock of the training goes on, but for compilation."""
    backend = trainer.problem.backend
    start, traced = time.perf_counter(), backend.trace_seconds
    batch = batches(state.step)
    state, record = trainer.step(state, batch)
    elapsed = time.perf_counter() - start - (backend.trace_seconds - traced)
    state = replace(state, seconds=state.seconds + elapsed)
    return state, {**record, "wall_seconds": state.seconds}
