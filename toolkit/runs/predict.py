"""The trained networks of a run as a surrogate: targets from a file in, controls, simulated fields and losses out.

    predict("runs/heat_sip/first", "targets.nc", "predicted.nc")

Samples are read, predicted, simulated and written in blocks of equal size, so that one program is compiled and memory
does not grow with their number. Networks and physics keep the precision they were trained in; parameters are those of
the last checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.backend import Backend, using
from toolkit.core.errors import DivergenceError, ScenarioError, StorageError
from toolkit.core.solves import run_errors
from toolkit.runs import atomic, checkpoint, monitors, names
from toolkit.runs.datasets import global_attributes
from toolkit.runs.directory import RunDirectory
from toolkit.runs.events import SILENT, Events
from toolkit.runs.layout import Coordinate, Variable
from toolkit.runs.open import open_run
from toolkit.runs.predict_input import SampleFile, open_samples
from toolkit.runs.predict_output import SampleWriter
from toolkit.runs.provenance import collect
from toolkit.runs.results import Contents, network_variables
from toolkit.runs.stopping import StopRequest, stop_requests
from toolkit.scenario.build import build
from toolkit.scenario.merge import key_path, normalise, override
from toolkit.scenario.problems import Origin, raise_all
from toolkit.scenario.sample_source import is_source
from toolkit.scenario.scenario import Scenario, compile_scenario
from toolkit.scenario.sections import DataChoice
from toolkit.scenario.yaml_loader import from_plain, read_file
from toolkit.training.data import Assembler
from toolkit.training.loop import evaluate
from toolkit.training.problem import CONTROL, Batch, Natives, batch_from_tree

ADVICE = "these samples may lie far from those that the networks were trained on"
LOSS = "loss"
CONTROL_ERROR = "control_error"


@dataclass(frozen=True)
class Prediction:
    """What was written, and how good it is."""

    path: Path
    samples: int
    loss: float
    """L(y, y*), mean over the samples."""
    control_error: float | None
    """½ Σ (x − x*)², mean over the samples; None where x* is unknown."""
    seconds: float
    """Time in all, compilation included."""


def predict(
    run: str | Path,
    input_file: str | Path,
    output_file: str | Path,
    batch: int | None = None,
    backend: str | None = None,
    device: str | None = None,
    events: Events = SILENT,
) -> Prediction:
    """Apply the networks of a run to the samples of a netCDF file, `batch` at a time (none: as in training).

    ScenarioError where run or file do not fit, DivergenceError where a sample gives non-finite numbers; the output
    appears when it is complete.
    """
    started = time.perf_counter()
    source, output = Path(input_file), Path(output_file)
    if batch is not None and batch < 1:
        raise ScenarioError(f"--batch {batch}: expected a number of samples, 1 or more")
    _check_output(source, output)
    directory = open_run(run).directory
    scenario = _scenario(directory, {"run.backend": backend, "run.device": device})
    sections = scenario.sections
    arrays, step = _parameters(directory, scenario, events)
    options = sections.run
    with (
        stop_requests() as stop,
        using(options.backend, options.device, sections.physics_precision, sections.network_precision) as active,
        run_errors(sections.pde.type),
        open_samples(source, sections) as samples,
    ):
        for name in samples.narrowed:
            events.message(f"{name} is rounded to {sections.physics_precision}, in which the run computes")
        if sections.data is None:
            events.message("the run's own samples are gone: whether the input gives all that they gave is not checked")
        size = min(batch or sections.train.batch_size, samples.count)
        model = _Model(scenario, samples, size, arrays, active)
        attributes = _attributes(scenario, directory, source, step, active)
        sums = _write(model, samples, output, attributes, events, stop)
    means = {name: total / samples.count for name, total in sums.items()}
    return Prediction(
        output, samples.count, means[LOSS], means.get(CONTROL_ERROR), seconds=time.perf_counter() - started
    )


def _check_output(source: Path, output: Path) -> None:
    if output.is_dir() or not output.name:
        raise ScenarioError(f"--output {output}: expected the name of a netCDF file, this is a folder")
    if not output.parent.is_dir():
        raise ScenarioError(f"--output {output}: no such folder: {output.parent}; make it first")
    if output.exists() and source.exists() and output.samefile(source):
        raise ScenarioError(f"--output {output}: this is the input; choose another name")


def _scenario(directory: RunDirectory, changes: Mapping[str, str | None]) -> Scenario:
    """The scenario of a run; how its parts fit together, and its own data, were checked when it was run."""
    root = normalise(read_file(directory.scenario))
    data = root.at(("data", "path"))
    gone = data is not None and not is_source(Path(str(data.value)))
    if gone:
        # The run's own samples are not needed any more; something has to stand there, until it is taken out below.
        here = str(directory.scenario.resolve())
        root = override(root, ("data", "path"), from_plain(here, Origin("the run's own samples")))
    for key, value in changes.items():
        if value is not None:
            root = override(root, key_path(key), from_plain(value, Origin(f"--set {key}={value}")))
    scenario, report = compile_scenario(root, directory.scenario, fit=False)
    raise_all(report.problems)
    assert scenario is not None
    if not scenario.sections.networks:
        raise ScenarioError(f"{directory.path}: this run has no network that could predict; only trained ones can")
    return replace(scenario, sections=replace(scenario.sections, data=None)) if gone else scenario


def _parameters(directory: RunDirectory, scenario: Scenario, events: Events) -> tuple[dict[str, np.ndarray], int]:
    """(parameters and buffers by group and name, number of updates) of the last checkpoint."""
    status = open_run(directory.path).record.status
    arrays, counters = checkpoint.load(directory.checkpoint)
    step = int(counters["step"])
    if status != "done":
        events.message(f"{directory.path} is {status}; its checkpoint after {step} updates is used")
    own = [c.name for c in scenario.sections.controls.values() if f"params/{CONTROL}/{c.name}" in arrays]
    if own:
        raise ScenarioError(
            f"{directory.path}: {', '.join(own)} was optimised for the run's own samples, no network gives it"
        )
    return arrays, step


class _Model:
    """Blocks of samples to arrays: one compiled program for blocks of `size` samples, shorter ones filled up."""

    def __init__(
        self, scenario: Scenario, samples: SampleFile, size: int, arrays: Mapping[str, np.ndarray], active: Backend
    ):
        first = samples.block(0, size)
        data = DataChoice("file", train=None, validation=0, seed=0, path=samples.path)
        # Without an update rule: nothing is trained, and its solver may need more than there is.
        self.sections = replace(scenario.sections, data=data, update=None)
        self.size = size
        self._built = build(self.sections, active, lambda path: first)
        self._problem = self._built.problem
        self._params = _restored(arrays, "params", self._built.params, active)
        self._buffers = _restored(arrays, "buffers", self._built.buffers, active)
        self._assemble = Assembler(self._problem)
        self._program: Any = None

    def __call__(self, block: Mapping[str, np.ndarray], first: int) -> dict[str, dict[str, np.ndarray]]:
        """NumPy arrays by group and name; `first` is the number of the block's first sample."""
        b = self._problem.backend
        count = len(next(iter(block.values())))
        short = self.size - count
        # A repeated sample changes nothing for the others, a new shape would be compiled anew.
        filled = {k: np.concatenate([v, np.repeat(v[-1:], short, axis=0)]) if short else v for k, v in block.items()}
        batch = self._assemble(filled)
        groups, measured = self._evaluate(batch)
        groups |= {"targets": dict(batch.targets), "references": dict(batch.references)}
        arrays = {g: {k: b.numpy(v)[:count] for k, v in values.items()} for g, values in groups.items()}
        _check_finite(arrays, first)
        monitors.check(self._problem, measured, f"samples {first} to {first + count - 1}", ADVICE)
        return arrays

    def _evaluate(self, batch: Batch) -> tuple[dict[str, Any], Mapping[str, float]]:
        problem, b = self._problem, self._problem.backend

        def forward(params: Natives, buffers: Natives, tree: Any) -> Any:
            found = evaluate(problem, params, buffers, batch_from_tree(tree), record=True)
            judged = {LOSS: found.loss, **found.control_metrics}
            if found.control_error is not None:
                judged[CONTROL_ERROR] = found.control_error
            groups = {
                "controls": dict(found.controls),
                "initial": dict(found.initial),
                "states": dict(found.states),
                "judged": judged,
            }
            return groups, monitors.measure(problem, found.initial, found.final)

        if self._program is None:
            problem.prepare(batch)
            self._program = b.compile(forward, self._params, self._buffers, batch.tree())
        groups, measured = b.without_gradient(self._program, self._params, self._buffers, batch.tree())
        return dict(groups), {name: float(value) for name, value in measured.items()}

    def variables(self, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[list[Any], list[Coordinate]]:
        """Variables with their values in this block, and coordinates without samples."""
        contents = Contents(self.sections, 0)
        pairs, coordinates = network_variables(contents, arrays)
        sample = Coordinate(names.SAMPLE, np.zeros(0, np.int64), "sample of the input")
        described = {m.name: (m.long_name, m.units) for m in self._problem.plugin.control_metrics}
        described |= {LOSS: ("loss of the sample", "1")}
        described |= {CONTROL_ERROR: ("half squared error of the control of the sample", "1")}
        taken = {variable.name for variable, _ in pairs}
        # Backends may give them in another order.
        order = [LOSS, CONTROL_ERROR, *sorted(described)]
        for name, values in sorted(arrays["judged"].items(), key=lambda pair: order.index(pair[0])):
            text, units = described[name]
            free = f"sample_{name}" if name in taken else name
            pairs.append((Variable(free, (names.SAMPLE,), text, units, str(values.dtype)), values))
        return pairs, [sample, *(c for c in coordinates if c.name != names.SAMPLE)]


def _restored(arrays: Mapping[str, np.ndarray], group: str, like: Natives, b: Backend) -> dict[str, Any]:
    """The arrays of one group of a checkpoint, in the order of the networks that are built."""
    stored = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(group + "/")}
    unlike = [n for n in like if n not in stored or tuple(stored[n].shape) != tuple(like[n].shape)]
    unlike += [n for n in stored if n not in like]
    if unlike:
        raise StorageError(f"the checkpoint does not fit the networks of the scenario: {', '.join(unlike)} differs")
    return {name: b.array(stored[name]) for name in like}


def _check_finite(arrays: Mapping[str, Mapping[str, np.ndarray]], first: int) -> None:
    for group in ("controls", "states", "judged"):
        for name, values in arrays[group].items():
            whole = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not whole.all():
                raise DivergenceError(f"sample {first + int(np.argmin(whole))}: {name} is not finite; {ADVICE}")


def _write(
    model: _Model, samples: SampleFile, output: Path, attributes: Mapping[str, Any], events: Events, stop: StopRequest
) -> dict[str, float]:
    """Predict and write all samples; sums of what was measured per sample."""
    sums: dict[str, float] = {}
    with atomic.replacing(output) as temporary:
        writer: SampleWriter | None = None
        try:
            for start in range(0, samples.count, model.size):
                end = min(start + model.size, samples.count)
                arrays = model(samples.block(start, end), start)
                pairs, coordinates = model.variables(arrays)
                if writer is None:
                    declared = [variable for variable, _ in pairs]
                    grid = model.sections.grid
                    writer = SampleWriter(temporary, declared, coordinates, attributes, grid, model.size)
                writer.append({variable.name: values for variable, values in pairs})
                for name, values in arrays["judged"].items():
                    sums[name] = sums.get(name, 0.0) + float(np.sum(values, dtype=float))
                events.progress(end, samples.count, {LOSS: sums[LOSS] / end})
                if end < samples.count:
                    stop.check(f"{output} was not written, start again")
        finally:
            if writer is not None:
                writer.close()
    return sums


def _attributes(
    scenario: Scenario, directory: RunDirectory, source: Path, step: int, active: Backend
) -> dict[str, Any]:
    header = scenario.sections.header
    return global_attributes(
        title=f"{header.name}: prediction",
        summary=f"Predicted by the networks of {directory.path} after {step} updates for the samples of {source.name}",
        scenario=atomic.read_text(directory.scenario),
        provenance=collect(tuple(sys.argv)),
        references=header.references,
        input=str(source),
        run=str(directory.path),
        updates=step,
        backend=active.name,
        device=str(active.device),
    )
