"""Samples to predict for: a file or store checked against the scenario from its header, then read block by block.

The file holds what files of samples hold (`<field>_target`, `initial_<field>`, …, see `toolkit.runs.samples`); beside
those, `<control>_reference` is understood, and the first frame of `<field>` where the start is not given otherwise, so
that the fields of a run are an input themselves. Units, components and
the attribute `grid` are compared where the file has them, and nothing is converted but the floating-point type.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import ScenarioError
from toolkit.core.streams import stream
from toolkit.physics.grid import Grid
from toolkit.physics.sampling import draw
from toolkit.runs import names
from toolkit.runs.phiflow_fields import grid_text
from toolkit.scenario.check_file import check_coordinates, check_shape, given_variables, joined_variables
from toolkit.scenario.check_samples import check_place, check_values, read_block
from toolkit.scenario.layouts import given_layout, target_keys, timing
from toolkit.scenario.problems import Origin
from toolkit.scenario.report import Report
from toolkit.scenario.sample_source import is_source, open_source
from toolkit.scenario.sections import Sections
from toolkit.scenario.yaml_loader import Node

FILE = ("file",)
DIMENSIONLESS = ("", "1", "dimensionless")


@dataclass(frozen=True)
class SampleFile:
    """An open file whose samples fit the scenario."""

    path: Path
    count: int
    """Number of samples."""
    narrowed: tuple[str, ...]
    """Variables whose type is wider than what the run computes in."""
    _variables: Mapping[str, Any]

    def block(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Arrays of these samples by key, laid out (sample, [t], *cells, [components])."""
        return {key: read_block(variable, key, slice(start, stop)) for key, variable in self._variables.items()}


@contextmanager
def open_samples(path: Path, sections: Sections) -> Iterator[SampleFile]:
    """The samples of a file; ScenarioError lists whatever does not fit."""
    if not is_source(path):
        raise ScenarioError(f"--input {path}: no such file")
    with ExitStack() as stack:
        try:
            dataset = stack.enter_context(open_source(path))
        except (OSError, RuntimeError) as error:
            kind = "a Zarr store" if path.is_dir() else "netCDF"
            raise ScenarioError(f"--input {path}: cannot be read as {kind}: {error}") from error
        found = _checked(path, dataset, sections)
        narrowed = [v.name for v in found.values() if _itemsize(v) > np.dtype(sections.physics_precision).itemsize]
        yield SampleFile(path, len(dataset.dimensions[names.SAMPLE]), tuple(narrowed), found)


def _checked(path: Path, dataset: Any, sections: Sections) -> dict[str, Any]:
    """The variables of a file by key."""
    report = Report(Node({}, Origin(str(path))))
    found = {key: _without_last(key, v, sections) for key, v in _found(dataset, sections, report).items()}
    if not found:
        report.add(FILE, "holds no samples: no variable <field>_target or initial_<field> along `sample`")
    elif not len(dataset.dimensions[names.SAMPLE]):
        report.add(FILE, "holds no samples: `sample` has length 0")
    else:
        _check_needed(sections, found, report)
        check_coordinates(sections, dataset, report)
        _check_times(sections, dataset, found, report)
        for key, variable in found.items():
            check_place(sections, key, variable.name, FILE, report)
            layout = given_layout(sections, key)
            if layout is not None:
                check_shape(key, variable, layout, report)
                _check_attributes(sections, key, variable, dataset, report)
        if not report.problems:
            # The values last: whoever mistook the file knows at once.
            check_values(sections, found, path.name, report)
    if report.problems:
        raise ScenarioError(*(f"{path}{_joint(problem.message, path.name)}" for problem in report.problems))
    return found


def _joint(message: str, name: str) -> str:
    """A message behind the path of its file; those that begin with the file's name go on from there."""
    return message.removeprefix(name) if message.startswith(name) else f": {message}"


def _found(dataset: Any, sections: Sections, report: Report) -> dict[str, Any]:
    """Variables by key, true controls also under the name that a run writes them by."""
    found = given_variables(dataset, report)
    known = joined_variables(dataset.variables)
    for control in sections.controls.values():
        variable = known.get(control.name + names.REFERENCE)
        if variable is not None and names.SAMPLE in variable.dimensions:
            found.setdefault(control.acts_on, variable)
    controls = {control.acts_on for control in sections.controls.values()}
    for key in _context(sections) - controls - set(found):
        variable = known.get(key.removeprefix("initial."))
        if (
            variable is not None
            and getattr(_source(variable), names.ROLE, "") == "state"
            and _begins(dataset, variable)
        ):
            found[key] = _Start(variable, _file_name(key))
    return found


def _begins(dataset: Any, variable: Any) -> bool:
    """Whether a state lies along samples and times, of which the first is the start."""
    times = dataset.variables.get(names.TIME)
    along = {names.SAMPLE, names.TIME} <= set(variable.dimensions)
    return along and times is not None and len(times) > 0 and float(times[0]) == 0.0


@dataclass(frozen=True)
class _Start:
    """The first frame of a state as runs write it."""

    whole: Any
    name: str

    @property
    def dimensions(self) -> tuple[str, ...]:
        return tuple(dim for dim in self.whole.dimensions if dim != names.TIME)

    @property
    def shape(self) -> tuple[int, ...]:
        pairs = zip(self.whole.dimensions, self.whole.shape, strict=True)
        return tuple(size for dim, size in pairs if dim != names.TIME)

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        place = self.whole.dimensions.index(names.TIME)
        return self.whole[(*index[:place], 0, *index[place:])]


@dataclass(frozen=True)
class _Steps:
    """A force as runs write it, at the times of the states: the last one, when no step begins, is left out."""

    whole: Any
    steps: int

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def dimensions(self) -> tuple[str, ...]:
        return self.whole.dimensions

    @property
    def shape(self) -> tuple[int, ...]:
        pairs = zip(self.dimensions, self.whole.shape, strict=True)
        return tuple(self.steps if dim == names.TIME else size for dim, size in pairs)

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        place = self.dimensions.index(names.TIME)
        return self.whole[(*index[:place], slice(0, self.steps), *index[place + 1 :])]


def _without_last(key: str, variable: Any, sections: Sections) -> Any:
    sizes = dict(zip(variable.dimensions, variable.shape, strict=True))
    longer = key.startswith("force.") and sizes.get(names.TIME) == sections.time.steps + 1
    return _Steps(variable, sections.time.steps) if longer else variable


def _check_needed(sections: Sections, found: Mapping[str, Any], report: Report) -> None:
    """Whether networks, loop and loss have what they need: targets, and what the samples of the run bring."""
    missing = [f"target.{key.partition('.')[2]}" for key in target_keys(sections)]
    missing = [key for key in dict.fromkeys(missing) if key not in found]
    controls = {control.acts_on for control in sections.controls.values()}
    simulated = controls <= set(found) and not any(key.startswith("target.") for key in found)
    for key in missing if not simulated else ():
        who = [name for name, network in sections.networks.items() if "target" in network.input]
        needs = f"network {', '.join(who)} sees it" if who else "the loss compares with it"
        report.add(FILE, f"{_file_name(key)} is missing: {needs}; expected it along {_dims(sections, key)}")
    for key in sorted(_context(sections) - controls - set(found)):
        needs = f"the samples that the networks were trained on give {key}"
        report.add(FILE, f"{_file_name(key)} is missing: {needs}; expected it along {_dims(sections, key)}")


def _context(sections: Sections) -> set[str]:
    """What samples of the run give beside targets, by key; empty where its own file is gone."""
    data = sections.data
    seen = {source for network in sections.networks.values() for source in network.input}
    needed = {source for source in seen if source.startswith("initial.")}
    if data is None:
        return needed
    if data.sampler is not None:
        rng = stream(data.seed, "predict")
        given = set(draw(data.sampler, sections.grid, sections.pde.options, data.options, timing(sections), rng, 1))
    elif data.path is not None and is_source(data.path):
        with open_source(data.path) as dataset:
            given = set(given_variables(dataset, Report(Node({}, Origin(str(data.path))))))
    else:
        given = set()
    return needed | {key for key in given if not key.startswith("target.")}


def _file_name(key: str) -> str:
    role, _, name = key.partition(".")
    return name + names.TARGET if role == "target" else f"{role}_{name}"


def _dims(sections: Sections, key: str) -> str:
    layout = given_layout(sections, key)
    if layout is None:
        return names.SAMPLE
    steps = [] if layout.steps is None else [f"t: {layout.steps + (1 if key.startswith('target.') else 0)}"]
    cells = [f"{axis}: {n}" for axis, n in (layout.cells or {}).items()]
    parts = [f"component: {len(layout.components)}"] if layout.components else []
    return ", ".join([names.SAMPLE, *steps, *cells, *parts])


def _check_times(sections: Sections, dataset: Any, found: Mapping[str, Any], report: Report) -> None:
    """Whether what lies along t was taken at the times of this simulation, where the file tells them."""
    along = [v.name for v in found.values() if names.TIME in v.dimensions]
    if not along or names.TIME not in dataset.variables:
        return
    there = np.asarray(dataset.variables[names.TIME][:], float)
    here = np.arange(there.size) * sections.time.dt
    # A thousandth of a step, as for cells: more than rounding, less than any difference of meaning.
    if there.size and np.max(np.abs(there - here)) > 1e-3 * sections.time.dt:
        ends = f"from {there[0]:g} to {there[-1]:g}"
        report.add(FILE, f"{along[0]} is given at times t {ends}, expected steps of {sections.time.dt:g} from 0")


def _check_attributes(sections: Sections, key: str, variable: Any, dataset: Any, report: Report) -> None:
    """Units, names of components and grid of a variable, where the file tells them."""
    role, _, name = key.partition(".")
    spec = None if role == "parameter" else sections.described.get(name)
    source = _source(variable)
    expected = "1" if spec is None else spec.units
    units = str(getattr(source, "units", expected)).strip()
    if units != expected and not (units in DIMENSIONLESS and expected in DIMENSIONLESS):
        report.add(FILE, f"{variable.name} has the units {units!r}, expected {expected!r}; convert it")
    if spec is not None and spec.components and not spec.is_complex:
        dim = next((d for d in variable.dimensions if names.is_component(d)), "")
        if names.label_name(dim) in dataset.variables:
            labels = tuple(str(label) for label in dataset.variables[names.label_name(dim)][:])
            if labels != tuple(spec.components):
                there, here = ", ".join(labels), ", ".join(spec.components)
                report.add(FILE, f"{variable.name} has the components {there}, expected {here}, in this order")
    text = getattr(source, names.GRID, None)
    if isinstance(text, str) and sections.grid is not None:
        _check_grid(variable.name, text, sections.grid, report)


def _check_grid(name: str, text: str, grid: Grid, report: Report) -> None:
    try:
        there, here = json.loads(text), json.loads(grid_text(grid))
    except json.JSONDecodeError:
        report.add(FILE, f"{name}: its attribute `grid` is not JSON; remove or restore it")
        return
    for part in here:
        if not isinstance(there, dict) or not _same(there.get(part), here[part]):
            found = there.get(part) if isinstance(there, dict) else there
            report.add(FILE, f"{name} lies on a grid with {part} {found}, expected {here[part]}")


def _same(there: Any, here: Any) -> bool:
    if not isinstance(there, dict) or set(there) != set(here):
        return False
    pairs = [(there[side], value) for side, value in here.items()]
    return all(np.isclose(a, b) if isinstance(b, float) and isinstance(a, int | float) else a == b for a, b in pairs)


def _source(variable: Any) -> Any:
    """The netCDF variable behind one; of a complex field its real part."""
    inner = variable.whole if isinstance(variable, _Steps | _Start) else variable
    return inner.parts[0] if hasattr(inner, "parts") else inner


def _itemsize(variable: Any) -> int:
    dtype = getattr(_source(variable), "dtype", None)
    return dtype.itemsize if isinstance(dtype, np.dtype) and dtype.kind == "f" else 0
