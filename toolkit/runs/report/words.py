"""A scenario in words: equation, parameters, controls, data, networks, loss and update rule, as the plugins say it.

All is plain text, which the template escapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.core.options import Options
from toolkit.physics.grid import Grid
from toolkit.runs.report.plot import number
from toolkit.scenario.sections import Control, LossTerm, Sections, UpdateChoice


@dataclass(frozen=True)
class Row:
    """One thing of a scenario."""

    term: str
    lines: list[str]
    formulas: list[str] = field(default_factory=list)
    """Lines that are set apart."""


def in_words(sections: Sections) -> list[Row]:
    """What was solved, and how."""
    return [row for row in _rows(sections) if row.lines or row.formulas]


def _rows(sections: Sections) -> Iterator[Row]:
    pde = sections.pde
    yield Row("equation", [f"{pde.type}: {pde.plugin.summary}"], pde.plugin.equation.splitlines())
    yield Row("parameters", list(_options(pde.options)))
    if sections.grid is not None:
        yield Row("grid", [_grid(sections.grid)])
    steps = sections.time.steps
    yield Row("time", [f"{steps} step{'s' if steps != 1 else ''} of dt = {number(sections.time.dt)}"])
    yield Row("unknown", [_control(sections, control) for control in sections.controls.values()])
    yield Row("data", _data(sections))
    yield Row("networks", [_network(choice) for choice in sections.networks.values()])
    yield Row("loss", [_loss(term, len(sections.loss) > 1) for term in sections.loss])
    if sections.update is not None:
        yield _update(sections.update)
        yield Row("training", [_training(sections)])


def _options(options: Any) -> Iterator[str]:
    """Keys of an options model with their values, units and meanings."""
    if not isinstance(options, Options):
        return
    for name, info in type(options).model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        units = str(extra.get("units", "1"))
        value = getattr(options, name)
        said = f"{name} = {_value(value)}" + ("" if units == "1" or value is None else f" {units}")
        yield said + (f" ({info.description})" if info.description else "")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Options):
        return str(value.model_dump())
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_value, value))})"
    return str(value)


def _grid(grid: Grid) -> str:
    cells = " × ".join(map(str, grid.shape))
    extent = " × ".join(number(float(v)) for v in grid.extent.values())
    sides = {axis + end: grid.side(axis, end) for axis in grid.axes for end in "-+"}
    words = {str(v).replace("_", " ") for v in sides.values()}
    boundary = words.pop() if len(words) == 1 else ", ".join(f"{side} {word}" for side, word in sides.items())
    return f"{cells} cells on {extent}; boundary: {boundary}"


def _control(sections: Sections, control: Control) -> str:
    role, target = control.role, control.target
    where = {
        "initial": f"the initial state of {target}",
        "force": f"what acts on {target} in each time step",
        "source": f"what acts on {target} at all times",
        "parameter": f"the parameter {target}",
    }[role]
    networks = [choice.name for choice in sections.networks.values() if control.name in choice.output]
    if networks:
        return f"{control.name}: {where}, given by the network {', '.join(networks)}"
    start = "" if control.initial is None else f" from {_short(control.initial)}"
    return f"{control.name}: {where}, optimised itself{start}"


def _short(value: Any) -> str:
    text = _value(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _data(sections: Sections) -> list[str]:
    data = sections.data
    if data is None:
        return []
    about = f"{data.type}: {data.sampler.summary}" if data.sampler else f"from the file {data.path}"
    train = "always new samples" if data.infinite else f"{data.train or 'all other'} samples"
    split = f"training on {train}; " if sections.update is not None else ""
    lines = [about, f"{split}{data.validation} samples for validation, seed {data.seed}"]
    return lines + list(_options(data.options))


def _network(choice: Any) -> str:
    when = "at every time step" if choice.every_step else "once"
    seen, given = ", ".join(choice.input), ", ".join(choice.output)
    return f"{choice.name}: {choice.type} ({choice.plugin.summary.rstrip('.')}); sees {seen}, gives {given}, {when}"


def _loss(term: LossTerm, weighted: bool) -> str:
    weight = f"{number(term.weight)} × " if weighted or term.weight != 1 else ""
    return f"{weight}{term.type} of {term.on}: {term.plugin.summary}"


def _update(update: UpdateChoice) -> Row:
    lines = [f"{update.type}: {update.plugin.summary}"]
    if update.inverse_solver:
        solver = update.inverse_solver
        lines.append(f"inverse solver {solver.type}: {solver.plugin.summary}")
    if update.network_rule:
        lines.append(f"network rule {update.network_rule.type}: {update.network_rule.plugin.summary}")
    own = [line for line in _options(update.options) if not line.startswith(("inverse_solver", "network_rule"))]
    rate = update.optimizer.learning_rate
    said = number(rate) if isinstance(rate, int | float) else f"{rate.type} ({rate.options})"
    lines += [*own, f"optimizer {update.optimizer.type}, learning rate {said}"]
    if update.clip is not None:
        lines.append(f"clip: {_mapping(update.clip.model_dump(exclude_none=True))}")
    return Row("update rule", lines, update.plugin.formula.splitlines())


def _mapping(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_value(v)}" for key, v in value.items())


def _training(sections: Sections) -> str:
    train = sections.train
    limit = f", at most {number(train.time_limit)} s" if train.time_limit else ""
    batch = f" on batches of {train.batch_size} samples" if sections.networks else ""
    return f"{'any number of' if train.steps is None else train.steps} updates{batch}{limit}"
