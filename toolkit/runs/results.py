"""What of a run goes into `fields.nc`: variables, coordinates and arrays for its three kinds.

* network: `<field>` (sample, t, …), `<field>_target`, `<control>`, `<control>_reference`; where networks act in the
  loop also `<field>_untrained`, `<control>_untrained`: the same before the first update
* direct optimisation: `<control>` and `<field>` along `step`, start included; `sample` only where there is data
* simulation: `<field>` along `t`, streamed; `sample` only where there is data
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.physics.plugin import FieldSpec
from toolkit.runs import names
from toolkit.runs.layout import (
    Coordinate,
    Variable,
    component_coordinate,
    sample_coordinate,
    spatial_coordinates,
    time_coordinate,
)
from toolkit.scenario.sections import Control, Sections

SUFFIXES = {"target": names.TARGET, "reference": names.REFERENCE, "untrained": names.UNTRAINED}
"""What a role adds to the name of a field or control."""

Arrays = Mapping[str, Mapping[str, np.ndarray]]
"""NumPy by group, and by field or key in it."""


@dataclass(frozen=True)
class Contents:
    """Names wanted in the file, in order, and how each is laid out."""

    sections: Sections
    samples: int | None
    """Length of `sample`; None without that dimension."""

    def wanted(self, name: str) -> bool:
        """Whether a field or control of this name is written."""
        fields = self.sections.output.fields
        return fields is None or name in fields

    @property
    def controls(self) -> list[Control]:
        """Controls to write."""
        return [c for c in self.sections.controls.values() if self.wanted(c.name)]

    @property
    def fields(self) -> list[FieldSpec]:
        """State fields to write; a control of the same name takes precedence."""
        taken = set(self.sections.controls)
        return [f for f in self.sections.fields.values() if self.wanted(f.name) and f.name not in taken]

    def dims(self, spec: FieldSpec | None, before: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Dimensions of a field (None: a scalar parameter) with extra leading ones."""
        sample = () if self.samples is None else (names.SAMPLE,)
        if spec is None:
            return (*sample, *before)
        grid = self.sections.grid
        space = grid.axes if grid is not None and spec.on_grid else ()
        listed = spec.components and not spec.is_complex
        return (*sample, *before, *space, *((self._component_dim(spec),) if listed else ()))

    def _component_dim(self, spec: FieldSpec) -> str:
        """`component`, or `<field>_component` where fields of the PDE have different components."""
        kinds = {f.components for f in self.sections.described.values() if f.components and not f.is_complex}
        return names.COMPONENT if len(kinds) == 1 else f"{spec.name}_{names.COMPONENT}"

    def _dtype(self, spec: FieldSpec | None) -> str:
        precision = self.sections.physics_precision
        twice = {"float32": "complex64", "float64": "complex128"}
        return twice[precision] if spec is not None and spec.is_complex else precision

    def coordinates(self) -> list[Coordinate]:
        """Coordinates of samples, space and components."""
        result = [] if self.samples is None else [sample_coordinate(self.samples)]
        if self.sections.grid is not None:
            result += spatial_coordinates(self.sections.grid)
        seen: dict[str, Coordinate] = {}
        for spec in self.sections.described.values():
            if spec.components and not spec.is_complex:
                dim = self._component_dim(spec)
                seen[dim] = component_coordinate(spec.components, dim)
        return [*result, *seen.values()]

    def field_of(self, control: Control) -> FieldSpec | None:
        """The field or action that a control acts on; None for a parameter."""
        return self.sections.described.get(control.target) if control.role != "parameter" else None

    def control_units(self, control: Control) -> str:
        """Units of a control: those of its field; `1` for a parameter, whose units are words such as length² / time."""
        spec = self.field_of(control)
        # A force or source is a rate; simulation time has no unit of its own.
        return "1" if spec is None else spec.units

    def control_words(self, control: Control) -> str:
        """Its name for people; a parameter's says its units, which CF would not accept as units."""
        name = control.name.replace("_", " ")
        if control.target in self.sections.actions and control.role != "parameter":
            return self.sections.actions[control.target].long_name
        if control.role != "parameter":
            return name
        extra = type(self.sections.pde.options).model_fields[control.target].json_schema_extra
        units = str(extra.get("units", "1")) if isinstance(extra, dict) else "1"
        return name if units == "1" else f"{name}, in {units}"

    def control_variable(self, control: Control, before: tuple[str, ...], role: str = "control") -> Variable:
        """The variable of a control, of its true value (role `reference`) or of that before training (`untrained`)."""
        words = self.control_words(control)
        return Variable(
            control.name + SUFFIXES.get(role, ""),
            self.dims(self.field_of(control), before),
            {"reference": f"true {words}", "untrained": f"{words} before training"}.get(role, words),
            self.control_units(control),
            dtype=self._dtype(self.field_of(control)),
            role=role,
        )

    def field_variable(self, spec: FieldSpec, before: tuple[str, ...], role: str = "state") -> Variable:
        """The variable of a state field, of its target (role `target`) or of that before training (`untrained`)."""
        words = spec.long_name
        return Variable(
            spec.name + SUFFIXES.get(role, ""),
            self.dims(spec, before),
            {"target": f"target of {words}", "untrained": f"{words} before training"}.get(role, words),
            spec.units,
            dtype=self._dtype(spec),
            role=role,
        )


def stored(spec: FieldSpec | None, array: np.ndarray) -> np.ndarray:
    """An array as files hold it: the parts of a complex number joined."""
    return array[..., 0] + 1j * array[..., 1] if spec is not None and spec.is_complex else array


def frame_steps(steps: int, every: int) -> list[int]:
    """Time steps that are written: the start, every `every`-th, and the last."""
    return sorted({0, steps, *range(0, steps + 1, every)})


def network_variables(
    contents: Contents, arrays: Arrays, untrained: Arrays | None = None
) -> tuple[list[tuple[Variable, np.ndarray]], list[Coordinate]]:
    """Variables and coordinates of the validation samples; `arrays` has initial, states, controls, targets,
    references as NumPy by field or key, `untrained` the first three before the first update."""
    time = contents.sections.time
    frames = frame_steps(time.steps, contents.sections.output.every)
    result: list[tuple[Variable, np.ndarray]] = []
    for spec in contents.fields:
        result.append(_course(contents, spec, arrays, frames, "state"))
        for kind in ("final", "trajectory"):
            target = arrays["targets"].get(f"{kind}.{spec.name}")
            if target is None:
                continue
            if kind == "trajectory":
                start = np.full_like(target[:, :1], np.nan)
                target = np.concatenate([start, target], axis=1)[:, frames]
            before = (names.TIME,) if kind == "trajectory" else ()
            result.append((contents.field_variable(spec, before, "target"), stored(spec, target)))
    for control in contents.controls:
        result += _acting(contents, control, arrays["controls"], frames, "control")
        result += _acting(contents, control, arrays["references"], frames, "reference")
    if untrained is not None:
        result += [_course(contents, spec, untrained, frames, "untrained") for spec in contents.fields]
        for control in contents.controls:
            result += _acting(contents, control, untrained["controls"], frames, "untrained")
    times = time_coordinate([step * time.dt for step in frames], "1")
    return result, [*contents.coordinates(), times]


def _course(
    contents: Contents, spec: FieldSpec, arrays: Arrays, frames: list[int], role: str
) -> tuple[Variable, np.ndarray]:
    """A field along t, its start included."""
    whole = np.concatenate([arrays["initial"][spec.name][:, None], arrays["states"][spec.name]], axis=1)
    return contents.field_variable(spec, (names.TIME,), role), stored(spec, whole[:, frames])


def _acting(
    contents: Contents, control: Control, values: Mapping[str, np.ndarray], frames: list[int], role: str
) -> list[tuple[Variable, np.ndarray]]:
    """A control where it is known; a force lies along t."""
    value = values.get(control.acts_on)
    if value is None:
        return []
    value = _at_frames(value, frames) if control.role == "force" else value
    return [(contents.control_variable(control, _time(control), role), stored(contents.field_of(control), value))]


def _at_frames(force: np.ndarray, frames: list[int]) -> np.ndarray:
    """A force per step at the frames where those steps begin; none begins at the last frame (NaN)."""
    padded = np.concatenate([force, np.full_like(force[:, :1], np.nan)], axis=1)
    return padded[:, frames]


def direct_variables(contents: Contents) -> list[Variable]:
    """Variables of a direct optimisation that grow along `step`."""
    found = [contents.control_variable(c, (names.STEP, *_time(c))) for c in contents.controls]
    return found + [contents.field_variable(f, (names.STEP,)) for f in contents.fields]


def _time(control: Control) -> tuple[str, ...]:
    return (names.TIME,) if control.role == "force" else ()


def direct_frame(contents: Contents, controls: Mapping[str, Any], final: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of one step of a direct optimisation, by variable."""
    frame = {c.name: stored(contents.field_of(c), controls[c.acts_on]) for c in contents.controls}
    frame |= {f.name: stored(f, final[f.name]) for f in contents.fields}
    return {name: value if contents.samples is not None else value[0] for name, value in frame.items()}
