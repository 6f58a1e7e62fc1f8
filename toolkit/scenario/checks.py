"""Whether the sections of a scenario fit together, judged before anything is built or run.

Each check adds findings to the report; `check_learning.py` holds those about data, rule, solver and
optimizer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import numpy as np
from pydantic import ValidationError

from toolkit.core.architecture import buffer_shapes
from toolkit.core.errors import MissingError
from toolkit.core.registry import suggestion
from toolkit.scenario.check_learning import check_data, check_update
from toolkit.scenario.check_samples import check_start
from toolkit.scenario.extremes import ask, check_size
from toolkit.scenario.layouts import control_layout, network_shape, places
from toolkit.scenario.problems import KeyPath
from toolkit.scenario.report import Report, listed
from toolkit.scenario.sections import Control, NetworkChoice, Sections


def check(sections: Sections, report: Report) -> None:
    """Add a finding for everything in the sections that does not fit together."""
    if not check_size(sections, report):
        return
    sound = [_control(sections, control, report) for control in sections.controls.values()]
    losses = _loss(sections, report)
    networks = [_network(sections, network, report) for network in sections.networks.values()]
    _sources_of_controls(sections, report)
    _output(sections, report)
    _stability(sections, report)
    if all(sound) and losses and all(networks):
        _architectures(sections, report)
        check_start(sections, report)
        given = check_data(sections, report)
        _starts_seen(sections, given, report)
        check_update(sections, given, report)


def _control(sections: Sections, control: Control, report: Report) -> bool:
    """Whether the PDE lets a control act where it wants to."""
    plugin = sections.pde.plugin
    accepting = places(sections, control.role)
    path: KeyPath = ("controls", control.name, "acts_on")
    if control.target not in accepting:
        what = (
            "parameters that can be controls" if control.role == "parameter" else f"places that accept {control.role}"
        )
        message = f"PDE {plugin.name!r} has no {control.acts_on!r}; {what}: {listed(accepting)}"
        report.add(path, message)
        return False
    if not _free_name(sections, control.name, report):
        return False
    twins = [c.name for c in sections.controls.values() if c.acts_on == control.acts_on]
    if twins[0] != control.name:
        report.add(path, f"{control.acts_on} is already controls.{twins[0]}; one control per place")
        return False
    if control.initial is None:
        return True
    return _initial_value(sections, control, report)


def _free_name(sections: Sections, name: str, report: Report) -> bool:
    """Whether a variable of this name has room in the datasets beside dimensions, fields and what belongs to them."""
    axes = sections.grid.axes if sections.grid else ()
    taken = {"sample", "t", "step", "component", *axes}
    taken |= {f"{field}_target" for field in sections.fields}
    taken |= {f"{other}_reference" for other in sections.controls}
    if any(network.every_step for network in sections.networks.values()):
        taken |= {f"{other}_untrained" for other in (*sections.fields, *sections.controls)}
    if sections.networks:
        # A direct optimisation may call its control like the field it sets: the two are the same numbers.
        taken |= set(sections.fields)
    if name in taken:
        report.add(("controls", name), f"{name!r} is the name of another variable in the results", at_key=True)
    return name not in taken


def _initial_value(sections: Sections, control: Control, report: Report) -> bool:
    """Whether the start value of a direct optimisation fits the control's shape."""
    path: KeyPath = ("controls", control.name, "initial")
    shape = control_layout(sections, control).shape
    wanted = f"a number or the shape {shape}" if shape else "a number"
    try:
        start = np.asarray(control.initial, float)
    except ValueError:
        report.add(path, f"expected {wanted} for {control.acts_on}, got lists of unequal lengths")
        return False
    try:
        np.broadcast_to(start, shape)
    except ValueError:
        report.add(path, f"expected {wanted} for {control.acts_on}, got the shape {start.shape}")
        return False
    return control.role != "parameter" or _allowed_parameter(sections, control, report)


def _allowed_parameter(sections: Sections, control: Control, report: Report) -> bool:
    """Whether the start value of a parameter is one that the PDE would accept in its section."""
    pde = sections.pde
    try:
        pde.plugin.parameters.model_validate({**pde.options.model_dump(), control.target: control.initial})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        report.add(("controls", control.name, "initial"), f"pde.{control.target}: {first['msg']}")
        return False
    return True


def _loss(sections: Sections, report: Report) -> bool:
    """Whether every term judges a field that exists, or a control."""
    before = len(report.problems)
    for i, term in enumerate(sections.loss):
        role, _, name = term.on.partition(".")
        path: KeyPath = ("loss", i, "on") if len(sections.loss) > 1 else ("loss", "on")
        if term.plugin.judges and term.on not in term.plugin.judges:
            report.add(path, f"loss {term.type!r} judges {listed(term.plugin.judges)}, not {term.on}")
        elif role not in ("final", "trajectory"):
            places = [control.acts_on for control in sections.controls.values()]
            if term.on not in places:
                report.add(path, f"no control acts on {term.on!r}{suggestion(term.on, places)}")
            elif term.plugin.needs_target:
                message = f"loss {term.type!r} compares with a target, which controls have none of"
                report.add(path, f"{message}; use one without, such as 'mean_square'")
        elif name not in sections.fields:
            known = suggestion(name, list(sections.fields))
            report.add(path, f"PDE {sections.pde.type!r} has no field {name!r}{known}")
    return len(report.problems) == before


def _network(sections: Sections, network: NetworkChoice, report: Report) -> bool:
    """Whether a network's controls exist and its place in the loop makes sense."""
    path: KeyPath = ("networks", network.name)
    before = len(report.problems)
    for name in network.output:
        if name not in sections.controls:
            report.add((*path, "output"), f"no control {name!r}{suggestion(name, list(sections.controls))}")
        elif network.every_step and sections.controls[name].role != "force":
            acts_on = sections.controls[name].acts_on
            report.add((*path, "every_step"), f"a network in the loop gives forces; {name!r} acts on {acts_on}")
    _inputs(sections, network, report)
    dimensions = len(sections.grid.axes) if sections.grid else 0
    if dimensions not in network.plugin.dimensions:
        allowed = " or ".join(str(n) for n in network.plugin.dimensions)
        message = f"network {network.type!r} takes {allowed} dimensions (0: no grid), here are {dimensions}"
        report.add((*path, "type"), message)
    return len(report.problems) == before


def _inputs(sections: Sections, network: NetworkChoice, report: Report) -> None:
    """What a network sees exists where it is called, each once."""
    path: KeyPath = ("networks", network.name, "input")
    kinds = {source.partition(".")[0] for source in network.input}
    if network.every_step and "state" not in kinds:
        expected = "`input: state`, or a list with it such as [state, target]"
        report.add(path, f"a network with `every_step: true` sees the current state; expected {expected}")
    for source in network.input:
        kind, _, place = source.partition(".")
        if kind in ("state", "time") and not network.every_step:
            report.add(path, f"only a network with `every_step: true` sees {source}; expected `input: target`")
        elif kind == "initial" and network.every_step:
            report.add(path, f"a network with `every_step: true` sees the state, not {source}; expected `input: state`")
        elif place and place not in sections.fields:
            message = f"PDE {sections.pde.type!r} has no field {place!r}"
            report.add(path, message + suggestion(place, list(sections.fields)))
        elif source in {control.acts_on for control in sections.controls.values()}:
            report.add(path, f"{source} is unknown here; a network sees only a start that the data give")
        elif kind == "state" and place and "state" in network.input:
            report.add(path, f"{source} is a part of state, which is seen too; remove one of the two")
    if len(set(network.input)) < len(network.input):
        report.add(path, f"expected each of {listed(set(network.input))} once")


def _starts_seen(sections: Sections, given: Iterable[str], report: Report) -> None:
    """The data give the starts that networks see; what is wrong with the data comes first."""
    for name, network in sections.networks.items():
        missing = {source for source in network.input if source.startswith("initial.")} - set(given)
        if missing and not report.problems:
            message = f"the data give {listed(sorted(given))}, not {listed(sorted(missing))}"
            report.add(("networks", name, "input"), message)


def _sources_of_controls(sections: Sections, report: Report) -> None:
    """Every control comes from exactly one network, or from a start value."""
    mixed = bool(sections.networks) and any(c.initial is not None for c in sections.controls.values())
    for name, control in sections.controls.items():
        givers = [network.name for network in sections.networks.values() if name in network.output]
        path: KeyPath = ("controls", name)
        if len(givers) > 1:
            report.add(path, f"two networks give this control: {listed(givers)}; expected one", at_key=True)
        elif givers and control.initial is not None:
            message = f"network {givers[0]!r} gives this control, so it has no start value; remove `initial`"
            report.add((*path, "initial"), message)
        elif mixed and not givers and control.initial is not None:
            # One value per sample, while a network sees other samples at every step.
            message = "a start value belongs to a direct optimisation, here networks are trained; make it an output"
            report.add((*path, "initial"), message)
        elif not givers and control.initial is None:
            message = "nothing gives this control: make it `output` of a network, or optimise it from `initial`"
            report.add(path, message, at_key=True)


def _architectures(sections: Sections, report: Report) -> None:
    """Whether each network can be built for the channels and cells it meets."""
    for name, network in sections.networks.items():
        try:
            architecture = network.plugin.build(network.options, network_shape(sections, network))
        except ValueError as error:
            report.add(("networks", name), f"network {network.type!r}: {error}", at_key=True)
            continue
        if network.every_step and buffer_shapes(architecture):
            # Its statistics would be those of one batch at one step, and different at the next.
            message = "a network in the loop cannot normalise by batches; set `batch_norm: false`"
            report.add(("networks", name, "every_step"), message)
        elif sections.update and "independent_samples" in sections.update.needs and buffer_shapes(architecture):
            # Its Jacobians are taken sample by sample, which normalisation over the batch would couple.
            message = f"update rule {sections.update.type!r} needs samples that do not depend on each other"
            report.add(("networks", name), f"{message}; set `batch_norm: false`", at_key=True)


def _output(sections: Sections, report: Report) -> None:
    if sections.output.format == "zarr" and importlib.util.find_spec("zarr") is None:
        raise MissingError("output.format: zarr needs the package zarr: pip install 'phinverse[zarr]'")
    known = list(dict.fromkeys([*sections.fields, *sections.controls]))
    for i, name in enumerate(sections.output.fields or ()):
        if name not in known:
            report.add(("output", "fields", i), f"no field or control {name!r}{suggestion(name, known)}")
    if sections.output.activations and not (sections.networks and sections.data and sections.data.validation):
        message = "activations are recorded at validation: give networks and data.validation, or remove it"
        report.add(("output", "activations"), message)


def _stability(sections: Sections, report: Report) -> None:
    """Numbers such as CFL that are known before the run and too large for the scheme."""
    pde = sections.pde
    numbers = ask(
        lambda: pde.plugin.stability(pde.options, sections.grid, sections.time.dt),
        f"stability of PDE {pde.type!r}",
        ("pde",),
        report,
    )
    for number in numbers or ():
        # Not `value > limit`, so that a number that is not finite is found too.
        if number.limit is not None and not number.value <= number.limit:
            path = tuple(number.key.split("."))
            report.add(
                path,
                f"{number.name} is {number.value:.4g}, its limit is {number.limit:.4g}; change {number.key}",
            )
