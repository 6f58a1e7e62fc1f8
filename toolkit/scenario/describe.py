"""What a scenario will build, in numbers, without building it: for `phinverse validate`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from toolkit.core.architecture import count_parameters, node_shapes
from toolkit.physics.layout import field_layout
from toolkit.physics.plugin import StabilityNumber
from toolkit.scenario.forecast import batch_size, forecast
from toolkit.scenario.layouts import control_layout, network_shape, observation_layout, rematerialised
from toolkit.scenario.problems import dotted
from toolkit.scenario.scenario import Scenario, leaves
from toolkit.scenario.sections import Sections
from toolkit.scenario.sweep import expand
from toolkit.training.inversion_plan import Plan

BYTES = {"float32": 4, "float64": 8}
COPIES_OF_STATE = 4
"""States that one time step keeps for its derivative; a PDE with more stages keeps more."""


@dataclass(frozen=True)
class FieldSummary:
    """A state field, control or observation: one sample of it."""

    name: str
    shape: tuple[int, ...]
    units: str = "1"

    @property
    def size(self) -> int:
        """Scalars per sample."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class NetworkSummary:
    """A network: what it maps and how large it is."""

    name: str
    type: str
    inputs: int
    outputs: int
    cells: tuple[int, ...]
    parameters: int
    activations: int
    """Scalars that a forward pass of one sample holds."""


@dataclass(frozen=True)
class JacobianSize:
    """∂y/∂θ of one batch, as rules that decompose it hold it."""

    rows: int
    """Batch size times outputs of the physics."""
    columns: int
    """Trained scalars."""
    bytes: int


@dataclass(frozen=True)
class Description:
    """Everything `validate` prints about one scenario (for a sweep: about the scenario as it stands)."""

    name: str
    cells: tuple[int, ...]
    dx: tuple[float, ...]
    """Cell size per axis, in units of length."""
    fields: tuple[FieldSummary, ...]
    controls: tuple[FieldSummary, ...]
    observations: tuple[FieldSummary, ...]
    networks: tuple[NetworkSummary, ...]
    trained: int
    """Scalars that training changes."""
    jacobian: JacobianSize | None
    """None where nothing is learned."""
    inversion: Plan | None
    """How a rule that inverts the Jacobian will; None for other rules."""
    memory: int
    """Rough need of a training step in bytes, without the Jacobian."""
    stability: tuple[StabilityNumber, ...]
    sweep_cells: int


def describe(scenario: Scenario) -> Description:
    """What will be built."""
    sections = scenario.sections
    grid, pde = sections.grid, sections.pde
    fields = tuple(
        FieldSummary(spec.name, field_layout(spec, grid).shape, spec.units) for spec in sections.fields.values()
    )
    controls = tuple(
        FieldSummary(control.name, control_layout(sections, control).shape, _units(sections, control.target))
        for control in sections.controls.values()
    )
    observed = dict.fromkeys(term.on for term in sections.loss)
    observations = tuple(
        FieldSummary(key, observation_layout(sections, key).shape, _units(sections, key.partition(".")[2]))
        for key in observed
    )
    networks = tuple(_network(sections, name) for name in sections.networks)
    trained = sum(network.parameters for network in networks)
    trained += sum(c.size for c in controls if sections.controls[c.name].initial is not None)
    return Description(
        name=scenario.name,
        cells=grid.shape if grid else (),
        dx=grid.dx if grid else (),
        fields=fields,
        controls=controls,
        observations=observations,
        networks=networks,
        trained=trained,
        jacobian=_jacobian(sections, observations, trained),
        inversion=forecast(sections),
        memory=_memory(sections, fields, networks, trained),
        stability=tuple(pde.plugin.stability(pde.options, grid, sections.time.dt)),
        sweep_cells=len(expand(scenario)),
    )


def _units(sections: Sections, name: str) -> str:
    """Units of a field or action; `1` for a parameter, whose units are words."""
    described = sections.described
    return described[name].units if name in described else "1"


def _network(sections: Sections, name: str) -> NetworkSummary:
    choice = sections.networks[name]
    shape = network_shape(sections, choice)
    architecture = choice.plugin.build(choice.options, shape)
    activations = sum(math.prod(node) for node in node_shapes(architecture).values())
    size = count_parameters(architecture)
    return NetworkSummary(name, choice.type, shape.inputs, shape.outputs, shape.cells, size, activations)


def _jacobian(sections: Sections, observations: tuple[FieldSummary, ...], trained: int) -> JacobianSize | None:
    if sections.update is None or not observations:
        return None
    rows = batch_size(sections) * sum(observation.size for observation in observations)
    return JacobianSize(rows, trained, rows * trained * BYTES[sections.network_precision])


def _memory(
    sections: Sections, fields: tuple[FieldSummary, ...], networks: tuple[NetworkSummary, ...], trained: int
) -> int:
    """States of all steps of a batch, activations and parameters with what belongs to them."""
    batch, steps = batch_size(sections), sections.time.steps if sections.update else 1
    # Of rematerialised stretches their starts are kept, and one of them whole.
    kept = min(rematerialised(sections) or steps, steps)
    states = sum(field.size for field in fields) * (kept if kept == steps else kept + steps // kept)
    physics = batch * states * COPIES_OF_STATE * BYTES[sections.physics_precision]
    calls = {True: kept, False: 1}
    activations = sum(n.activations * calls[sections.networks[n.name].every_step] for n in networks)
    # Each activation and its gradient; each parameter, its gradient and up to two moments.
    return physics + (2 * batch * activations + 4 * trained) * BYTES[sections.network_precision]


@dataclass(frozen=True)
class Explained:
    """One value of the resolved scenario and who said so."""

    key: str
    value: Any
    origin: str
    """`file:line`, `--set key=value` or `default`."""


def explain(scenario: Scenario) -> tuple[Explained, ...]:
    """Every value with its origin, in the order of the file."""
    origins = scenario.origins
    return tuple(Explained(dotted(path), value, origins[dotted(path)]) for path, value in leaves(scenario.data))
