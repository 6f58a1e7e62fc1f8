"""From a checked scenario to live objects on the active backend: problem, trainer, initial parameters, batches.

The declaration (`Sections`) names kinds and options; here each becomes the thing itself. Nothing is decided here that
the scenario does not say, and everything random comes from a named stream of its seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.architecture import Architecture
from toolkit.core.backend import Backend
from toolkit.core.errors import ScenarioError
from toolkit.core.optimizers import clip
from toolkit.core.params import prefixed
from toolkit.core.streams import stream
from toolkit.networks.initialise import initialise
from toolkit.physics.layout import Layout, field_layout
from toolkit.physics.rollout import Rollout
from toolkit.physics.sampling import draw
from toolkit.scenario.layouts import control_layout, network_shape, observation_layout, rematerialised, timing
from toolkit.scenario.sections import Control as ControlChoice
from toolkit.scenario.sections import DataChoice, OptimizerChoice, ScheduleChoice, Sections, UpdateChoice
from toolkit.training.data import (
    Arrays,
    Assembler,
    Batches,
    FiniteBatches,
    FixedBatch,
    InfiniteBatches,
    Remembered,
    Source,
    file_split,
    training_samples,
    validation_samples,
)
from toolkit.training.loop import Trainer
from toolkit.training.problem import CONTROL, Batch, Control, LossTerm, NetworkUse, Problem


@dataclass(frozen=True)
class Built:
    """A scenario ready to run; `trainer` and what belongs to it are None for a plain simulation."""

    problem: Problem
    params: dict[str, Any]
    buffers: dict[str, Any]
    trainer: Trainer | None
    batches: Batches | None
    validation: Batch | None
    """None where there is nothing to validate on."""
    direct: bool
    """Whether the controls themselves are optimised."""


def build(sections: Sections, backend: Backend, read_file: Callable[[Path], Arrays]) -> Built:
    """Everything a run needs, on the active backend; `read_file` gives the samples of `data: {type: file}`."""
    problem = build_problem(sections, backend)
    assemble = Assembler(problem)
    direct = bool(sections.controls) and not sections.networks
    training, validation = _samples(sections, read_file)
    fixed = assemble(validation) if validation else None
    problem = _monitored(problem, fixed)
    params, buffers = _initial_parameters(sections, backend, fixed)
    if sections.update is None:
        return Built(problem, params, buffers, None, None, fixed, direct)
    batches = _batches(sections, assemble, training, fixed, direct)
    if fixed is None and sections.data is None:
        fixed = Batch()
    return Built(problem, params, buffers, build_trainer(sections, problem), batches, fixed, direct)


def with_seed(built: Built, sections: Sections, backend: Backend) -> Built:
    """What `build` gives for sections that differ from those of `built` in `run.seed` alone; the rest is shared."""
    params, buffers = _initial_parameters(sections, backend, built.validation)
    batches = built.batches
    if isinstance(batches, Remembered) and isinstance(batches.batches, FiniteBatches) and batches.batches.shuffle:
        finite = batches.batches
        batches = Remembered(
            FiniteBatches(finite.samples, finite.assemble, finite.batch_size, sections.run.seed, finite.shuffle)
        )
    return replace(built, params=params, buffers=buffers, batches=batches)


def _monitored(problem: Problem, batch: Batch | None) -> Problem:
    """Without the monitors that do not apply where the data bring forces or sources."""
    acting = {key.partition(".")[0] for key in batch.context} if batch else set()
    kinds = acting & {"force", "source"}
    return replace(problem, monitors=tuple(m for m in problem.monitors if not kinds & set(m.without)))


def build_problem(sections: Sections, backend: Backend) -> Problem:
    """Physics, controls, networks and loss as pure functions."""
    plugin, parameters, grid = sections.pde.plugin, sections.pde.options, sections.grid
    fields, actions = (
        {name: field_layout(spec, grid) for name, spec in specs.items()}
        for specs in (sections.fields, sections.actions)
    )
    controls = {c.name: Control(c.name, c.acts_on, control_layout(sections, c)) for c in sections.controls.values()}
    rollout = Rollout(
        backend=backend,
        pde=plugin.build(grid, parameters),
        layouts=fields,
        parameter_layouts={name: Layout() for name in plugin.parameter_controls},
        steps=sections.time.steps,
        dt=sections.time.dt,
        action_layouts=actions,
        rematerialise=rematerialised(sections),
    )
    networks = tuple(
        NetworkUse(
            name,
            backend.network(architecture).apply,
            tuple(controls[output] for output in sections.networks[name].output),
            sections.networks[name].every_step,
            sections.networks[name].input,
            architecture,
            sections.networks[name].plugin.gives_vector,
        )
        for name, architecture in architectures(sections).items()
    )
    solver = sections.update.inverse_solver if sections.update else None
    kinds = {control.role for control in sections.controls.values()}
    return Problem(
        backend=backend,
        plugin=plugin,
        parameters=parameters,
        grid=grid,
        rollout=rollout,
        controls=tuple(controls.values()),
        networks=networks,
        terms=tuple(LossTerm(t.on, t.plugin.build(t.options), t.weight, t.plugin.needs_target) for t in sections.loss),
        observations={term.on: observation_layout(sections, term.on) for term in sections.loss},
        solver=(solver.plugin, solver.options) if solver else None,
        monitors=tuple(m for m in plugin.monitors(parameters, grid) if not kinds & set(m.without)),
    )


def architectures(sections: Sections) -> dict[str, Architecture]:
    """The networks by name, described once for both backends."""
    return {
        name: choice.plugin.build(choice.options, network_shape(sections, choice))
        for name, choice in sections.networks.items()
    }


def build_trainer(sections: Sections, problem: Problem) -> Trainer:
    """Rule, optimizer and clipping."""
    update = sections.update
    assert update is not None
    backend, limit = problem.backend, update.clip
    optimizer = backend.optimizer(
        update.optimizer.type, update.optimizer.options.model_dump(), _learning_rate(update.optimizer)
    )
    return Trainer(
        problem=problem,
        rule=_rule(update),
        optimizer=optimizer,
        clip=(lambda d: d) if limit is None else (lambda d: clip(d, backend.xp, limit.norm, limit.value)),
        inner_updates=update.plugin.inner_updates(update.options),
        searches=optimizer.needs_objective,
    )


def _rule(update: UpdateChoice) -> Any:
    rule: Any = update.plugin.build(update.options)
    inner = update.network_rule
    return rule if inner is None else replace(rule, network_rule=inner.plugin.build(inner.options))


def _learning_rate(choice: OptimizerChoice) -> Any:
    rate = choice.learning_rate
    return rate.options if isinstance(rate, ScheduleChoice) else rate


def _initial_parameters(
    sections: Sections, backend: Backend, validation: Batch | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """θ and buffers from the seed's stream per network, and the start values of directly optimised controls."""
    params: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    for name, architecture in architectures(sections).items():
        weights, statistics = initialise(architecture, stream(sections.run.seed, f"init/{name}"))
        params |= prefixed({k: backend.array(v, "network") for k, v in weights.items()}, name)
        buffers |= prefixed({k: backend.array(v, "network") for k, v in statistics.items()}, name)
    samples = _sample_count(validation)
    for control in sections.controls.values():
        if control.initial is not None:
            shape = control_layout(sections, control).shape
            start = _broadcast(control, shape)
            params[f"{CONTROL}/{control.name}"] = backend.array(np.repeat(start[None], samples, axis=0), "physics")
    return params, buffers


def _broadcast(control: ControlChoice, shape: tuple[int, ...]) -> np.ndarray:
    value = np.asarray(control.initial, float)
    try:
        return np.broadcast_to(value, shape)
    except ValueError:
        raise ScenarioError(
            f"controls.{control.name}.initial: has shape {value.shape}, expected a number or shape {shape}"
        ) from None


def _sample_count(batch: Batch | None) -> int:
    for group in batch.tree().values() if batch else ():
        for value in group.values():
            return int(value.shape[0])
    return 1


def _samples(sections: Sections, read_file: Callable[[Path], Arrays]) -> tuple[Source | Arrays | None, Arrays]:
    """(training source or samples, validation samples); no data gives (None, {})."""
    data = sections.data
    if data is None:
        return None, {}
    if data.path is not None:
        return _split_file(sections, data, read_file(data.path))
    source = Source(_draw(sections, data), data.seed)
    validation = validation_samples(source, data.validation) if data.validation else {}
    return (source if data.train is None else training_samples(source, data.train)), validation


def _draw(sections: Sections, data: DataChoice) -> Callable[[np.random.Generator, int], Arrays]:
    sampler, parameters, grid = data.sampler, sections.pde.options, sections.grid
    assert sampler is not None
    return lambda rng, count: draw(sampler, grid, parameters, data.options, timing(sections), rng, count)


def _split_file(sections: Sections, data: DataChoice, arrays: Arrays) -> tuple[Arrays, Arrays]:
    """The last `validation` samples are for validation, the first `train` of the others for training; a simulation
    or direct optimisation takes the whole file unless `validation` says how many."""
    count = len(next(iter(arrays.values())))
    whole = not (sections.update and sections.networks)
    training, held_out = file_split(count, data.train, data.validation, whole)
    validation = {key: value[count - held_out :] for key, value in arrays.items()} if held_out else {}
    return {key: value[:training] for key, value in arrays.items()}, validation


def _batches(
    sections: Sections,
    assemble: Assembler,
    training: Source | Arrays | None,
    fixed: Batch | None,
    direct: bool,
) -> Batches:
    if direct or training is None:
        # Every sample has its own control: all of them, always.
        return FixedBatch(fixed or Batch())
    if isinstance(training, Source):
        return Remembered(InfiniteBatches(training, assemble, sections.train.batch_size))
    if sections.update is not None and sections.update.optimizer.type == "lbfgs":
        return FixedBatch(assemble(training))
    shuffle = sections.data is None or sections.data.shuffle
    return Remembered(FiniteBatches(training, assemble, sections.train.batch_size, sections.run.seed, shuffle))
