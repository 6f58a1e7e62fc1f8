"""Whether data, update rule, inverse solver and optimizer of a scenario fit together and fit the PDE."""

from __future__ import annotations

import re

import numpy as np

from toolkit.core.optimizers import OPTIMIZERS
from toolkit.scenario import kinds
from toolkit.scenario.check_file import check_file, check_given
from toolkit.scenario.layouts import control_layout, observation_layout, target_keys
from toolkit.scenario.problems import KeyPath
from toolkit.scenario.report import Report, listed
from toolkit.scenario.sections import DataChoice, Sections, UpdateChoice

LINE_SEARCH = ("lbfgs",)
"""Optimizers that search along a line: the direction has to be the gradient of a known function."""


def check_data(sections: Sections, report: Report) -> None:
    """The sampler fits the grid and gives what the loss and the rule need."""
    data = sections.data
    if data is None:
        _check_without_data(sections, report)
        return
    learned = sections.update is not None
    if learned and sections.networks and data.train is not None and sections.train.batch_size > data.train:
        message = f"a batch of {sections.train.batch_size} needs more than the {data.train} samples of data.train"
        report.add(("train", "batch_size"), f"{message}; lower it to {data.train} or raise data.train")
    if data.sampler is None:
        check_file(sections, data, report)
        return
    if not (learned and sections.networks) and data.validation == 0:
        what = "whose controls are optimised" if learned else "that are simulated"
        message = f"without networks the validation samples are those {what}"
        report.add(("data", "validation"), f"{message}; expected 1 or more")
    objection = data.sampler.check(sections.grid, sections.pde.options, data.options)
    if objection:
        # Samplers may begin with the key that is to blame.
        key = re.match(r"data((?:\.\w+)+): *(.+)", objection, re.DOTALL)
        path: KeyPath = ("data", *key.group(1)[1:].split(".")) if key else ("data",)
        report.add(path, key.group(2) if key else objection, at_key=key is None)
        return
    _check_samples(sections, data, report)


def _check_without_data(sections: Sections, report: Report) -> None:
    samplers = listed([*sections.pde.plugin.samplers, "file"])
    for i, term in enumerate(sections.loss):
        if term.plugin.needs_target:
            path: KeyPath = ("loss", i) if len(sections.loss) > 1 else ("loss",)
            report.add(path, f"loss {term.type!r} compares with a target; give `data` ({samplers})", at_key=True)
    if sections.update and "control_reference" in sections.update.plugin.needs:
        message = f"update rule {sections.update.type!r} needs samples whose true control is known"
        report.add(("update", "type"), f"{message}; give `data` ({samplers})")


def _check_samples(sections: Sections, data: DataChoice, report: Report) -> None:
    """Draw one sample: which keys a sampler gives, and in which shape, only the sampler knows."""
    assert data.sampler is not None
    generator = np.random.default_rng(data.seed)
    try:
        drawn = data.sampler.sample(sections.grid, sections.pde.options, data.options, generator, 1)
    except MemoryError:
        report.add(("grid", "cells"), "not even one sample of this grid fits into memory; use fewer cells")
        return
    layouts = {c.acts_on: control_layout(sections, c) for c in sections.controls.values()}
    layouts.update({f"target.{k.partition('.')[2]}": observation_layout(sections, k) for k in target_keys(sections)})
    for key, values in drawn.items():
        if key in layouts and values.shape != (1, *layouts[key].shape):
            shape = layouts[key].shape
            message = f"sampler {data.type!r} gives {key} in the shape {values.shape[1:]}, expected {shape}"
            report.add(("data", "type"), message)
    check_given(sections, f"sampler {data.type!r}", list(drawn), ("data", "type"), report)


def check_update(sections: Sections, report: Report) -> None:
    """The rule gets what it needs, and the optimizer what it assumes."""
    update = sections.update
    if update is None:
        if sections.networks:
            report.add(("networks",), "nothing trains the networks; give `update`", at_key=True)
        return
    if not sections.controls:
        report.add(("update",), "nothing is unknown; give `controls`, or remove `update` to simulate", at_key=True)
    if not sections.loss:
        report.add(("loss",), f"required key is missing; losses: {listed(kinds.losses(sections.pde.plugin))}")
    if "network" in update.plugin.needs and not sections.networks:
        report.add(("update", "type"), f"update rule {update.type!r} trains a network; give `networks`")
    if "every_step" in update.plugin.needs and not any(n.every_step for n in sections.networks.values()):
        message = f"update rule {update.type!r} needs a network in the loop; set `every_step: true` in networks"
        report.add(("update", "type"), message)
    if "control_reference" in update.plugin.needs and any(n.every_step for n in sections.networks.values()):
        message = f"update rule {update.type!r} compares with true controls, which a network in the loop has none of"
        report.add(("update", "type"), f"{message}; use 'dp'")
    _check_solver(sections, update, report)
    _check_optimizer(sections, update, report)


def _check_solver(sections: Sections, update: UpdateChoice, report: Report) -> None:
    if update.inverse_solver is None:
        return
    solver, name = update.inverse_solver.plugin, update.inverse_solver.type
    path: KeyPath = ("update", "inverse_solver", "type")
    if any(network.every_step for network in sections.networks.values()):
        report.add(path, "an inverse solver finds controls of a whole simulation; `every_step: true` has none")
    if solver.control is not None:
        others = [c.acts_on for c in sections.controls.values() if c.acts_on != solver.control]
        if others:
            message = f"inverse solver {name!r} finds {solver.control}, not {listed(others)}"
            report.add(path, message + _alternatives(sections, name))
    if solver.observation is not None:
        others = [term.on for term in sections.loss if term.on != solver.observation]
        if others:
            message = f"inverse solver {name!r} inverts {solver.observation}, not {listed(others)}"
            report.add(path, message + _alternatives(sections, name))
    if solver.boundaries is not None and sections.grid is not None:
        refused = sections.grid.boundary_words() - solver.boundaries
        if refused:
            message = f"inverse solver {name!r} needs boundaries {listed(solver.boundaries)}, not "
            report.add(path, message + listed(refused) + _alternatives(sections, name))
    if solver.physics_precision not in (None, sections.physics_precision):
        message = f"inverse solver {name!r} needs {solver.physics_precision}, got {sections.physics_precision}"
        one_word = isinstance(sections.run.precision, str)
        report.add(("run", "precision") if one_word else ("run", "precision", "physics"), message)
    if solver.works_on == "observation":
        _check_newton_step(sections, name, report)


def _alternatives(sections: Sections, name: str) -> str:
    others = [other for other in kinds.inverse_solvers(sections.pde.plugin) if other != name]
    return f"; others: {', '.join(others)}" if others else ""


def _check_newton_step(sections: Sections, name: str, report: Report) -> None:
    """A solver that inverts y is handed the Newton step of the loss in y, term by term."""
    solvers = kinds.inverse_solvers(sections.pde.plugin)
    others = listed(other for other, solver in solvers.items() if solver.works_on == "loss")
    if len({term.weight for term in sections.loss}) > 1:
        message = f"inverse solver {name!r} starts from Newton steps in y, from which weights cancel"
        report.add(("loss",), f"{message}; give all terms one weight, or use a solver that works on the loss: {others}")
    seen: set[str] = set()
    for i, term in enumerate(sections.loss):
        path: KeyPath = ("loss", i) if len(sections.loss) > 1 else ("loss",)
        if term.plugin.build(term.options).newton_step is None:
            message = f"loss {term.type!r} has no Newton step in y, which inverse solver {name!r} starts from"
            report.add((*path, "type"), f"{message}; use another loss, or a solver that works on the loss: {others}")
        if term.on in seen:
            message = f"inverse solver {name!r} inverts {term.on} once; several loss terms judge it"
            report.add((*path, "on"), f"{message}; join them, or use a solver that works on the loss: {others}")
        seen.add(term.on)


def _fixed_batch(sections: Sections, data: DataChoice) -> bool:
    """Whether every batch holds all training samples."""
    return not data.infinite and data.train in (None, sections.train.batch_size)


def _check_optimizer(sections: Sections, update: UpdateChoice, report: Report) -> None:
    if update.optimizer.type not in LINE_SEARCH:
        return
    name, path = update.optimizer.type, ("update", "optimizer", "type")
    if not update.plugin.potential:
        allowed = listed(set(OPTIMIZERS) - set(LINE_SEARCH))
        report.add(
            path,
            f"{name} searches along a line for the minimum of a function, but the direction of "
            f"{update.type!r} is not the gradient of one; use {allowed}",
        )
    if update.clip is not None:
        report.add(("update", "clip"), f"{name} chooses its own step length; remove `clip` or use another optimizer")
    data = sections.data
    # Without networks the controls of one batch are optimised, and that batch is fixed.
    if sections.networks and data is not None and not _fixed_batch(sections, data):
        report.add(
            path,
            f"{name} compares steps on one batch, and here every batch is another; set data.train to a "
            "number and train.batch_size to the same",
        )
