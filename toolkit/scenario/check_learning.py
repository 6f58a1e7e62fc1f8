"""Whether data, update rule, inverse solver and optimizer of a scenario fit together and fit the PDE."""

from __future__ import annotations

import re

import numpy as np

from toolkit.core.optimizers import OPTIMIZERS
from toolkit.physics.plugin import SolverSetting
from toolkit.physics.sampling import draw, objection
from toolkit.scenario import kinds
from toolkit.scenario.check_file import check_file, check_given
from toolkit.scenario.check_samples import check_drawn
from toolkit.scenario.extremes import ask
from toolkit.scenario.forecast import check_inversion
from toolkit.scenario.layouts import timing
from toolkit.scenario.problems import KeyPath
from toolkit.scenario.report import Report, listed
from toolkit.scenario.sections import DataChoice, Sections, SolverChoice, UpdateChoice

LINE_SEARCH = ("lbfgs",)
"""Optimizers that search along a line: the direction has to be the gradient of a known function."""


def check_data(sections: Sections, report: Report) -> frozenset[str]:
    """The sampler fits the grid and gives what the loss and the rule need; the keys that the data give."""
    data = sections.data
    if data is None:
        _check_without_data(sections, report)
        return frozenset()
    learned = sections.update is not None
    if learned and sections.networks and data.train is not None and sections.train.batch_size > data.train:
        message = f"a batch of {sections.train.batch_size} needs more than the {data.train} samples of data.train"
        report.add(("train", "batch_size"), f"{message}; lower it to {data.train} or raise data.train")
    if data.infinite and not data.shuffle:
        message = "every batch of an infinite training set is new, so that there is no order to keep"
        report.add(("data", "shuffle"), f"{message}; set data.train to a number, or remove `shuffle`")
    rest = data.train % sections.train.batch_size if data.train is not None else 0
    if learned and sections.networks and not data.shuffle and rest:
        message = f"in a fixed order the last {rest} of {data.train} samples would never be part of a batch of "
        report.add(("data", "shuffle"), f"{message}{sections.train.batch_size}; change data.train or train.batch_size")
    if data.sampler is None:
        return check_file(sections, data, report)
    if not (learned and sections.networks) and data.validation == 0:
        what = "whose controls are optimised" if learned else "that are simulated"
        message = f"without networks the validation samples are those {what}"
        report.add(("data", "validation"), f"{message}; expected 1 or more")
    sampler, before, options = data.sampler, len(report.problems), data.options
    refused = ask(
        lambda: objection(sampler, sections.grid, sections.pde.options, options, timing(sections)),
        f"sampler {data.type!r}",
        ("data",),
        report,
    )
    if refused:
        # Samplers may begin with the key that is to blame.
        key = re.match(r"data((?:\.\w+)+): *(.+)", refused, re.DOTALL)
        path: KeyPath = ("data", *key.group(1)[1:].split(".")) if key else ("data",)
        report.add(path, key.group(2) if key else refused, at_key=key is None)
    if len(report.problems) > before:
        return frozenset()
    return _check_samples(sections, data, report)


def _check_without_data(sections: Sections, report: Report) -> None:
    samplers = listed([*sections.pde.plugin.samplers, "file"])
    if any(network.every_step for network in sections.networks.values()):
        message = f"nothing says in which states the loop starts; give `data` ({samplers})"
        report.add(("networks",), message, at_key=True)
    for i, term in enumerate(sections.loss):
        if term.plugin.needs_target:
            path: KeyPath = ("loss", i) if len(sections.loss) > 1 else ("loss",)
            report.add(path, f"loss {term.type!r} compares with a target; give `data` ({samplers})", at_key=True)
    if sections.update and "control_reference" in sections.update.plugin.needs:
        message = f"update rule {sections.update.type!r} needs samples whose true control is known"
        report.add(("update", "type"), f"{message}; give `data` ({samplers})")


def _check_samples(sections: Sections, data: DataChoice, report: Report) -> frozenset[str]:
    """Draw one sample: which keys a sampler gives, and in which shape, only the sampler knows."""
    assert data.sampler is not None
    sampler, generator = data.sampler, np.random.default_rng(data.seed)
    what = f"sampler {data.type!r}"
    drawn = ask(
        lambda: draw(sampler, sections.grid, sections.pde.options, data.options, timing(sections), generator, 1),
        what,
        ("data",),
        report,
    )
    if drawn is None:
        return frozenset()
    check_drawn(sections, drawn, what, report)
    check_given(sections, what, list(drawn), ("data", "type"), report)
    return frozenset(drawn)


def check_update(sections: Sections, given: frozenset[str], report: Report) -> None:
    """The rule gets what it needs, and the optimizer what it assumes; `given`: keys that the data give."""
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
    if sections.run.rematerialise is not None and update.needs & {"inverse_solver", "independent_samples"}:
        message = f"update rule {update.type!r} differentiates steps more than once or not backward, so all are kept"
        report.add(("run", "rematerialise"), f"{message}; leave the key out, or use 'dp' or 'stable_bptt'")
    refused = update.plugin.check(update.options, timing(sections))
    if refused:
        key, _, message = refused.partition(": ")
        report.add(("update", key), message)
    _check_solver(sections, update, given, report)
    _check_optimizer(sections, update, report)
    if not report.problems:
        check_inversion(sections, report)


def _check_solver(sections: Sections, update: UpdateChoice, given: frozenset[str], report: Report) -> None:
    if update.inverse_solver is None:
        return
    before = len(report.problems)
    solver, name = update.inverse_solver.plugin, update.inverse_solver.type
    path: KeyPath = ("update", "inverse_solver", "type")
    others = [c.acts_on for c in sections.controls.values() if not solver.finds(c.acts_on)]
    if others:
        message = f"inverse solver {name!r} finds {_listed(solver.control)}, not {listed(others)}"
        report.add(path, message + _alternatives(sections, name))
    # A solver made for a PDE inverts its states; controls are no result of the physics.
    states = tuple(term.on for term in sections.loss if term.on.startswith(("final.", "trajectory.")))
    others = [
        term.on
        for term in sections.loss
        if not solver.inverts_observation(term.on) or (solver.inverts is not None and term.on not in states)
    ]
    if others:
        inverted = _listed(solver.observation) if solver.observation else "states"
        message = f"inverse solver {name!r} inverts {inverted}, not {listed(others)}"
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
    if len(report.problems) == before:
        _check_setting(sections, update.inverse_solver, given, report)


def _check_setting(sections: Sections, solver: SolverChoice, given: frozenset[str], report: Report) -> None:
    """What the solver itself has to say against this scenario."""
    unknown = frozenset(c.acts_on for c in sections.controls.values())
    acting = unknown | {k for k in given if not k.startswith("target.")}
    losses = tuple((term.type, term.weight) for term in sections.loss)
    refused = solver.plugin.check(
        SolverSetting(sections.grid, sections.pde.options, solver.options, timing(sections), acting, losses, unknown)
    )
    if refused:
        message = f"inverse solver {solver.type!r} {refused}"
        report.add(("update", "inverse_solver"), message + _alternatives(sections, solver.type))


def _listed(keys: str | tuple[str, ...] | None) -> str:
    return keys if isinstance(keys, str) else listed(keys or ())


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
    if not update.plugin.has_potential(update.options):
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
