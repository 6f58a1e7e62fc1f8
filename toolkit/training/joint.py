"""The next update of several runs at once: one compiled program for all, where they differ in nothing but numbers.

    (θ_k, optimizer_k, batch_k) → step → (θ_k', optimizer_k'),    k = 1 … K, one after the other inside the program

The body of that loop is the program of one run, so that each gets the numbers that it would have got alone, as a rule
bit for bit (the caller compares); mapped over k instead, products would be rounded otherwise. What is saved lies
between programs: the calls, the way of the metrics to the host, and samples that all of them see.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.training.data import Batches
from toolkit.training.loop import Trainer, TrainState
from toolkit.training.problem import Natives

GROUPS = ("params", "buffers", "optimizer")


@dataclass(frozen=True)
class Made:
    """One run's share of an update that was made together."""

    step: int
    """Number of updates done."""
    seconds: float
    """The run's share of the time: that of all by their number. Of `step_seconds` among the metrics, too."""
    metrics: Mapping[str, float]
    """As `Trainer.step` gives them."""
    stacked: Mapping[str, Natives]
    """State of all runs by group and name, (K, …)."""
    place: int

    def state(self, seconds: float) -> TrainState:
        """The run's own state, cut out now, after so many seconds of training."""
        groups = {
            group: {name: value[self.place] for name, value in arrays.items()} for group, arrays in self.stacked.items()
        }
        return TrainState(**groups, step=self.step, seconds=seconds)


class JointTrainer:
    """Makes the updates of K runs that share a `Trainer`."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._backend = trainer.problem.backend
        self._stacked: dict[str, dict[str, Any]] | None = None
        self._programs: dict[Any, Any] = {}
        self.compile_seconds = 0.0

    def forget(self) -> None:
        """Take the states of the runs anew at the next step: somebody has changed one."""
        self._stacked = None

    @property
    def knows_states(self) -> bool:
        """Whether the states of the last step are still at hand."""
        return self._stacked is not None

    def step(self, states: Sequence[TrainState], step: int, sources: Sequence[Batches]) -> list[Made | None]:
        """What each run gets from one update after `step`; None for a run whose metrics are not finite, which makes
        its update alone and says what is wrong. `states` are looked at where `knows_states` is false."""
        begun, compiled, count = time.perf_counter(), self.compile_seconds, len(sources)
        if self._stacked is None:
            self._stacked = {group: self._stack([getattr(s, group) for s in states]) for group in GROUPS}
        batches = [source(step) for source in sources]
        shared = all(batch is batches[0] for batch in batches[1:])
        trees = [batch.tree() for batch in batches]
        tree = trees[0] if shared else {group: self._stack([t[group] for t in trees]) for group in trees[0]}
        program = self._program(shared, tree, count)
        start = time.perf_counter()
        *groups, measured = program(*self._stacked.values(), tree)
        self._backend.synchronize(groups[0])
        share = (time.perf_counter() - start) / count
        self._stacked = dict(zip(GROUPS, groups, strict=True))
        rows = {name: self._backend.numpy(values) for name, values in measured.items()}
        seconds = (time.perf_counter() - begun - (self.compile_seconds - compiled)) / count
        return [self._made(step + 1, k, seconds, share, rows) for k in range(count)]

    def _made(self, step: int, k: int, seconds: float, share: float, rows: Mapping[str, np.ndarray]) -> Made | None:
        metrics = {name: float(values[k]) for name, values in rows.items()}
        if not all(map(math.isfinite, metrics.values())):
            return None
        assert self._stacked is not None
        return Made(step, seconds, {**metrics, "step_seconds": share}, self._stacked, k)

    def _stack(self, trees: Sequence[Natives]) -> dict[str, Any]:
        return {name: self._backend.xp.stack([tree[name] for tree in trees]) for name in trees[0]}

    def _program(self, shared: bool, tree: Mapping[str, Natives], count: int) -> Any:
        """The compiled step of all runs for batches of this shape."""
        shapes = {group: {key: tuple(v.shape) for key, v in arrays.items()} for group, arrays in tree.items()}
        key = (shared, count, str(shapes))
        if key not in self._programs:
            assert self._stacked is not None
            start = time.perf_counter()
            # Otherwise XLA fuses with the cutting out of one run, and rounds some sums in another order.
            update = self._backend.isolated(self._trainer.update)

            def together(params: Any, buffers: Any, optimizer: Any, tree: Any) -> Any:
                def one(carry: Any, run: Any) -> tuple[Any, Any]:
                    return carry, update(*run[:3], tree if shared else run[3])

                runs = (params, buffers, optimizer) if shared else (params, buffers, optimizer, tree)
                return self._backend.scan(one, (), runs, count)[1]

            self._programs[key] = self._backend.compile(together, *self._stacked.values(), tree)
            self.compile_seconds += time.perf_counter() - start
        return self._programs[key]
