"""Whether a file of samples fits the scenario: names, dimensions, grid and number of samples, from its header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.physics.layout import Layout
from toolkit.scenario.check_samples import check_place, check_values
from toolkit.scenario.layouts import given_layout, target_keys
from toolkit.scenario.report import Report, listed
from toolkit.scenario.sample_source import is_source, open_source
from toolkit.scenario.sections import DataChoice, Sections
from toolkit.training.data import file_key, file_split

PATH = ("data", "path")


def check_file(sections: Sections, data: DataChoice, report: Report) -> frozenset[str]:
    """Add a finding for whatever would stop a run on this file; the keys of what it holds."""
    assert data.path is not None
    if not is_source(data.path):
        return frozenset()  # reported where the path is resolved
    try:
        with open_source(data.path) as dataset:
            return frozenset(_check(sections, data, dataset, report))
    except (OSError, RuntimeError) as error:
        kind = "a Zarr store" if data.path.is_dir() else "netCDF"
        report.add(PATH, f"cannot read {data.path.name} as {kind}: {error}")
        return frozenset()


def _check(sections: Sections, data: DataChoice, dataset: Any, report: Report) -> list[str]:
    before = len(report.problems)
    found = given_variables(dataset, report)
    if not found:
        report.add(PATH, f"{data.path} holds no samples: no variable <field>_target or initial_<field> along `sample`")
        return []
    if not len(dataset.dimensions["sample"]):
        report.add(PATH, "the file holds no samples: `sample` has length 0")
        return list(found)
    _check_counts(sections, data, len(dataset.dimensions["sample"]), report)
    check_coordinates(sections, dataset, report)
    for key, variable in found.items():
        check_place(sections, key, f"{variable.name} of the file", PATH, report)
        layout = given_layout(sections, key)
        if layout is not None:
            check_shape(key, variable, layout, report)
    check_given(sections, "the file", list(found), ("data", "path"), report)
    if len(report.problems) == before:
        assert data.path is not None
        check_values(sections, found, data.path.name, report)
    return list(found)


def given_variables(dataset: Any, report: Report) -> dict[str, Any]:
    """What the file gives, by key."""
    found: dict[str, Any] = {}
    for name, variable in joined_variables(dataset.variables).items():
        key = file_key(name, getattr(variable, "role", ""))
        if key is None or "sample" not in variable.dimensions:
            continue
        if isinstance(variable, _Complex) and not variable.fits(report):
            continue
        if key in found:
            report.add(PATH, f"{found[key].name} and {name} of the file are both {key}; remove one of them")
        found[key] = variable
    return found


@dataclass(frozen=True)
class _Complex:
    """The two variables of a complex field, seen as one with components."""

    name: str
    parts: tuple[Any, Any]

    def fits(self, report: Report) -> bool:
        """Whether both parts lie on the same dimensions, in the same order."""
        real, imaginary = self.parts
        if real.dimensions != imaginary.dimensions:
            there, here = (", ".join(part.dimensions) or "none" for part in self.parts)
            message = f"{real.name} has the dimensions {there}, {imaginary.name} has {here}"
            report.add(PATH, f"{message}; expected the same, in the same order")
        return real.dimensions == imaginary.dimensions

    @property
    def dimensions(self) -> tuple[str, ...]:
        return (*self.parts[0].dimensions, "component")

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.parts[0].shape, 2)

    @property
    def role(self) -> str:
        return getattr(self.parts[0], "role", "")

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        """Values at an index of all dimensions, the components last."""
        return np.ma.stack([part[index[:-1]] for part in self.parts], axis=-1)


def joined_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a file with `<name>_re` and `<name>_im` as one `<name>`."""
    result: dict[str, Any] = {}
    for name, variable in variables.items():
        whole, part = name[:-3], name[-3:]
        if part == "_re" and f"{whole}_im" in variables:
            result[whole] = _Complex(whole, (variable, variables[f"{whole}_im"]))
        elif not (part == "_im" and f"{whole}_re" in variables):
            result[name] = variable
    return result


def _check_counts(sections: Sections, data: DataChoice, count: int, report: Report) -> None:
    whole = not (sections.update and sections.networks)
    training, validation = file_split(count, data.train, data.validation, whole)
    if validation > count or (not whole and (training < 1 or training + validation > count)):
        message = f"the file holds {count} samples; data.train and data.validation ask for {training} and {validation}"
        report.add(PATH, message)
    elif not whole and sections.train.batch_size > training:
        message = f"a batch of {sections.train.batch_size} needs more than the {training} training samples of the file"
        report.add(("train", "batch_size"), message)


def check_coordinates(sections: Sections, dataset: Any, report: Report) -> None:
    """Whether the coordinates of a file, where it has them, are the cell centres of the grid."""
    grid = sections.grid
    for axis in grid.axes if grid else ():
        assert grid is not None
        if axis not in dataset.variables:
            continue
        there, here = np.asarray(dataset.variables[axis][:], float), grid.coordinates(axis)
        # A thousandth of a cell: more than single precision loses, less than any difference of meaning.
        if there.shape != here.shape or np.max(np.abs(there - here)) > 1e-3 * grid.extent[axis] / grid.cells[axis]:
            message = (
                f"cells along {axis} of {dataset.filepath()} are not those of the grid: {_span(there)} in the file"
            )
            report.add(("grid", "cells"), f"{message}, {_span(here)} here")


def _span(values: np.ndarray) -> str:
    return f"{values.size} from {values[0]:g} to {values[-1]:g}" if values.size else "none"


def check_shape(key: str, variable: Any, layout: Layout, report: Report) -> None:
    """Dimensions by name, whatever their order in the file."""
    sizes: Mapping[str, int] = dict(zip(variable.dimensions, variable.shape, strict=True))
    wanted = dict(layout.cells or {})
    if layout.steps is not None:
        # A target along t has an empty first frame, at the start.
        wanted["t"] = layout.steps + (1 if key.startswith("target.") else 0)
    rest = {dim: n for dim, n in sizes.items() if dim != "sample" and dim not in wanted}
    components = [n for dim, n in rest.items() if dim == "component" or dim.endswith("_component")]
    fits = all(sizes.get(dim) == n for dim, n in wanted.items()) and len(rest) == len(components)
    if not fits or components != ([len(layout.components)] if layout.components else []):
        wanted |= {"component": len(layout.components)} if layout.components else {}
        message = f"{variable.name} has {_words(sizes)}, expected {_words({'sample': sizes['sample'], **wanted})}"
        report.add(PATH, message)


def _words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{dim}: {n}" for dim, n in sizes.items())


def check_given(sections: Sections, source: str, given: list[str], path: tuple[str, ...], report: Report) -> None:
    """Whether samples with these keys hold what loss and rule need."""
    unknown = [c.acts_on for c in sections.controls.values() if c.acts_on not in given]
    untold = [key for key in target_keys(sections) if f"target.{key.partition('.')[2]}" not in given]
    if untold and unknown and sections.update:
        message = f"{source} gives {listed(given)}: neither the target {listed(untold)} nor"
        report.add(path, f"{message} the true controls ({listed(unknown)}) to simulate it from")
    twice = [name for name in sections.fields if {f"final.{name}", f"trajectory.{name}"} <= set(target_keys(sections))]
    for name in twice:
        if f"target.{name}" in given:
            message = f"{source} gives one target of {name}, which cannot be both that of final.{name} and of"
            report.add(("loss",), f"{message} trajectory.{name}; keep one of these terms")
    if sections.update and "control_reference" in sections.update.plugin.needs and unknown:
        message = f"update rule {sections.update.type!r} needs the true control {listed(unknown)}"
        report.add(("update", "type"), f"{message}; {source} gives {listed(given)}")
