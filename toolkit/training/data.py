"""Where batches come from: a plugin's sampler, drawn anew for every step or once, or arrays read from a file.

Batch k of an infinite source is a function of (seed, k) alone, and a finite source is shuffled per epoch by (seed,
epoch), unless its order is kept: a resumed run sees what the uninterrupted one would have seen. Targets y* = P(x*) are
simulated with the problem's own physics unless the source gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.core.streams import stream
from toolkit.training.problem import Batch, Problem

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Raw samples by key: controls (`initial.u`), context, or targets (`target.u`)."""

    draw: Callable[[np.random.Generator, int], Arrays]
    """(generator, count) -> arrays (count, …)."""
    seed: int


@dataclass(frozen=True)
class Assembler:
    """Turns raw samples into batches of a problem; simulates targets in one compiled program per shape."""

    problem: Problem
    _compiled: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __call__(self, samples: Arrays) -> Batch:
        """Targets, references and context of raw samples."""
        b = self.problem.backend
        natives = {key: b.array(value, "physics") for key, value in samples.items()}
        known = {control.key for control in self.problem.controls}
        given = {key: value for key, value in natives.items() if not key.startswith("target.")}
        references = {key: value for key, value in given.items() if key in known}
        context = {key: value for key, value in given.items() if key not in known}
        targets = {
            key: natives[f"target.{key.partition('.')[2]}"]
            for key in self.problem.target_keys
            if f"target.{key.partition('.')[2]}" in natives
        }
        if self.problem.target_keys and not targets and given and known <= set(references):
            targets = self._simulate(given)
        return Batch(targets, references, context)

    def _simulate(self, given: Mapping[str, Any]) -> dict[str, Any]:
        b, problem = self.problem.backend, self.problem

        def observe(given: Mapping[str, Any]) -> dict[str, Any]:
            # Losses may judge the controls themselves.
            y = problem.observe({c.key: given[c.key] for c in problem.controls if c.key in given}, given)
            return {key: y[key] for key in problem.target_keys}

        key = tuple((name, tuple(value.shape)) for name, value in given.items())
        if key not in self._compiled:
            self._compiled[key] = b.compile(observe, dict(given))
        return b.without_gradient(self._compiled[key], dict(given))


@dataclass(frozen=True)
class InfiniteBatches:
    """New random samples for every step."""

    source: Source
    assemble: Assembler
    batch_size: int

    def __call__(self, step: int) -> Batch:
        """The batch of step number `step` (from 0)."""
        return self.assemble(self.source.draw(stream(self.source.seed, "train", step), self.batch_size))


@dataclass(frozen=True)
class FiniteBatches:
    """A fixed set of samples, shuffled every epoch unless told not to; a last ragged batch is dropped."""

    samples: Arrays
    assemble: Assembler
    batch_size: int
    seed: int
    shuffle: bool = True
    _order: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __call__(self, step: int) -> Batch:
        """The batch of step number `step` (from 0)."""
        count = len(next(iter(self.samples.values())))
        per_epoch = count // self.batch_size
        epoch, place = divmod(step, per_epoch)
        part = slice(place * self.batch_size, (place + 1) * self.batch_size)
        chosen = self._permutation(epoch, count)[part] if self.shuffle else part
        return self.assemble({key: value[chosen] for key, value in self.samples.items()})

    def _permutation(self, epoch: int, count: int) -> np.ndarray:
        if epoch not in self._order:
            self._order.clear()
            self._order[epoch] = stream(self.seed, "batches", epoch).permutation(count)
        return self._order[epoch]


@dataclass(frozen=True)
class FixedBatch:
    """The same samples at every step: direct optimisation, or an optimizer that needs a fixed objective."""

    batch: Batch

    def __call__(self, step: int) -> Batch:
        """The batch, whatever the step."""
        return self.batch


@dataclass
class Remembered:
    """Batches of which the last one is kept, because validation looks at it again."""

    batches: Callable[[int], Batch]
    _last: tuple[int, Batch] | None = None

    def __call__(self, step: int) -> Batch:
        """The batch of step number `step`, made once while steps do not change."""
        if self._last is None or self._last[0] != step:
            self._last = (step, self.batches(step))
        return self._last[1]


Batches = Callable[[int], Batch]


def training_samples(source: Source, count: int) -> Arrays:
    """All samples of a finite training set."""
    return source.draw(stream(source.seed, "train"), count)


def validation_samples(source: Source, count: int) -> Arrays:
    """The validation set, which no training batch shares a stream with."""
    return source.draw(stream(source.seed, "validation"), count)


def file_key(name: str, role: str = "") -> str | None:
    """Key of a variable in a file of samples: `<field>_target` is `target.<field>`, `initial_<field>` (or force_,
    source_, parameter_, with or without `_reference`) is `initial.<field>`; None for what is neither."""
    kind, _, rest = name.partition("_")
    if name.endswith("_target"):
        return "target." + name.removesuffix("_target")
    # What an earlier run predicted is not the truth; its `<control>_reference` is.
    if kind in ("initial", "force", "source", "parameter") and rest and role not in ("control", "untrained"):
        return f"{kind}.{rest.removesuffix('_reference')}"
    return None


def file_split(count: int, train: int | None, validation: int, whole: bool) -> tuple[int, int]:
    """(training, validation) samples of a file; `whole`: nothing is trained on batches, all samples may be used."""
    if whole:
        return 0, validation or count
    return (count - validation if train is None else train), validation


def tree_shapes(batch: Batch) -> dict[str, Any]:
    """Shapes of a batch by group and key, to tell when a compiled program does not fit."""
    return {group: {key: tuple(value.shape) for key, value in arrays.items()} for group, arrays in batch.tree().items()}
