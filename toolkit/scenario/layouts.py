"""Shapes that follow from a scenario: of controls, observations, and of what each network maps.

A network sees and gives channels: components times time steps of every field it touches, on the grid's cells. Where
some of them lie on the grid and some do not, all values of all of them are one vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from toolkit.networks.plugin import NetworkShape
from toolkit.physics.layout import Layout, field_layout, mixed
from toolkit.physics.plugin import Timing
from toolkit.scenario.sections import Control, NetworkChoice, Sections
from toolkit.training.channels import channel_count


def timing(sections: Sections) -> Timing:
    """The time of the simulation, as samplers see it."""
    return Timing(sections.time.steps, sections.time.dt)


def rematerialised(sections: Sections) -> int | None:
    """Steps that a backward pass computes again at a time; None: it keeps them all."""
    wanted = sections.run.rematerialise
    # T/L states and L steps are kept: least where both are √T.
    return math.isqrt(sections.time.steps - 1) + 1 if wanted == "auto" else wanted


def control_layout(sections: Sections, control: Control) -> Layout:
    """Layout of a control: a force has one entry per time step, a parameter is one number."""
    if control.role == "parameter":
        return Layout()
    steps = sections.time.steps if control.role == "force" else None
    return field_layout(sections.described[control.target], sections.grid, steps)


def observation_layout(sections: Sections, key: str) -> Layout:
    """Layout of `final.<field>`, of `trajectory.<field>` with one entry after each time step, or of a control."""
    kind, _, name = key.partition(".")
    if kind not in ("final", "trajectory"):
        return control_layout(sections, Control(name, key))
    return field_layout(sections.fields[name], sections.grid, sections.time.steps if kind == "trajectory" else None)


def places(sections: Sections, role: str) -> tuple[str, ...]:
    """What of the PDE can be set, forced or changed: the names that may follow `initial.`, `force.`, …"""
    plugin = sections.pde.plugin
    accepting = {"force": plugin.forces, "source": plugin.sources, "parameter": plugin.parameter_controls}
    return tuple(sections.fields) if role == "initial" else accepting.get(role, ())


def given_layout(sections: Sections, key: str) -> Layout | None:
    """Layout of what samples may give, `target.<field>` or the key of a control; None for what nothing looks at."""
    role, _, name = key.partition(".")
    if role == "target":
        layouts = (observation_layout(sections, key) for key in target_keys(sections) if key.endswith(f".{name}"))
        return next(layouts, None)
    return control_layout(sections, Control(name, key)) if name in places(sections, role) else None


def target_keys(sections: Sections) -> tuple[str, ...]:
    """The observations that the loss compares with a target, each once, in the order of the loss."""
    return tuple(dict.fromkeys(term.on for term in sections.loss if term.plugin.needs_target))


def network_shape(sections: Sections, network: NetworkChoice) -> NetworkShape:
    """What a network maps; ValueError with a sentence if its input or output is not one field on one grid."""
    seen, clock = _seen(sections, network), int("time" in network.input)
    given = []
    for name in network.output:
        layout = control_layout(sections, sections.controls[name])
        # In a closed loop the network gives the force of one step.
        given.append(Layout(layout.components, layout.cells) if network.every_step else layout)
    if network.plugin.gives_vector:
        return _encoder_shape(sections, seen, clock, given)
    if mixed([*seen, *given]):
        if 0 not in network.plugin.dimensions:
            raise ValueError("its input and output are partly on the grid and partly not; use a network of vectors")
        return NetworkShape(clock + sum(layout.size for layout in seen), sum(layout.size for layout in given))
    grid = sections.grid
    if grid is None or seen[0].cells is None:
        return NetworkShape(clock + _channels(seen), _channels(given))
    periodic = grid.boundary_words() == {"periodic"}
    return NetworkShape(clock + _channels(seen), _channels(given), grid.shape, periodic)


def _encoder_shape(sections: Sections, seen: list[Layout], clock: int, given: list[Layout]) -> NetworkShape:
    """Channels on the grid to all values of the controls."""
    if sections.grid is None or any(layout.cells is None for layout in seen):
        raise ValueError("it sees fields on a grid, and a part of its input is not; use a network of vectors")
    periodic = sections.grid.boundary_words() == {"periodic"}
    outputs = sum(layout.size for layout in given)
    return NetworkShape(clock + _channels(seen), outputs, sections.grid.shape, periodic)


def _seen(sections: Sections, network: NetworkChoice) -> list[Layout]:
    """Layouts of the fields a network sees; the time is one more channel."""
    sources = {
        "state": [field_layout(spec, sections.grid) for spec in sections.fields.values()],
        "target": [observation_layout(sections, key) for key in target_keys(sections)],
        "time": [],
        **{
            f"{kind}.{name}": [field_layout(spec, sections.grid)]
            for kind in ("initial", "state")
            for name, spec in sections.fields.items()
        },
    }
    if "target" in network.input and not sources["target"]:
        raise ValueError("its input is the target, but no loss term compares with one")
    return [layout for source in network.input for layout in sources[source]]


def _channels(layouts: Iterable[Layout]) -> int:
    return sum(channel_count(layout) for layout in layouts)
