"""Shapes that follow from a scenario: of controls, observations, and of what each network maps.

A network sees and gives channels: components times time steps of every field it touches, on the grid's cells.
"""

from __future__ import annotations

from collections.abc import Iterable

from toolkit.networks.plugin import NetworkShape
from toolkit.physics.layout import Layout, field_layout
from toolkit.scenario.sections import Control, NetworkChoice, Sections


def control_layout(sections: Sections, control: Control) -> Layout:
    """Layout of a control: a force has one entry per time step, a parameter is one number."""
    if control.role == "parameter":
        return Layout()
    steps = sections.time.steps if control.role == "force" else None
    return field_layout(sections.fields[control.target], sections.grid, steps)


def observation_layout(sections: Sections, key: str) -> Layout:
    """Layout of `final.<field>`, or of `trajectory.<field>` with one entry after each time step."""
    kind, _, name = key.partition(".")
    return field_layout(sections.fields[name], sections.grid, sections.time.steps if kind == "trajectory" else None)


def target_keys(sections: Sections) -> tuple[str, ...]:
    """The observations that the loss compares with a target, each once, in the order of the loss."""
    return tuple(dict.fromkeys(term.on for term in sections.loss if term.plugin.needs_target))


def network_shape(sections: Sections, network: NetworkChoice) -> NetworkShape:
    """What a network maps; ValueError with a sentence if its input or output is not one field on one grid."""
    if network.input == "state":
        seen = [field_layout(spec, sections.grid) for spec in sections.fields.values()]
    else:
        seen = [observation_layout(sections, key) for key in target_keys(sections)]
    given = []
    for name in network.output:
        layout = control_layout(sections, sections.controls[name])
        # In a closed loop the network gives the force of one step.
        given.append(Layout(layout.components, layout.cells) if network.every_step else layout)
    if not seen:
        raise ValueError("its input is the target, but no loss term compares with one")
    on_grid = {layout.cells is not None for layout in (*seen, *given)}
    if len(on_grid) > 1:
        raise ValueError("its input and output are partly on the grid and partly not")
    grid = sections.grid
    if grid is None or on_grid == {False}:
        return NetworkShape(_channels(seen), _channels(given))
    periodic = grid.boundary_words() == {"periodic"}
    return NetworkShape(_channels(seen), _channels(given), grid.shape, periodic)


def _channels(layouts: Iterable[Layout]) -> int:
    return sum(max(len(layout.components), 1) * (layout.steps or 1) for layout in layouts)
