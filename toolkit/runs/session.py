"""A training run with its files: metrics, validation, checkpoints, fields along the way, and where to go on.

The loop itself is `toolkit.training.loop.train`; here is what happens beside it. A checkpoint holds parameters,
buffers, optimizer state and counters; batches are functions of the step number, so nothing else is needed to go on
exactly where the run stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.core.errors import DivergenceError
from toolkit.runs import checkpoint, monitors
from toolkit.runs.directory import RunDirectory
from toolkit.runs.events import Events
from toolkit.runs.field_output import FrameWriter, open_frames, resume_frames, write_whole
from toolkit.runs.layout import step_coordinate, time_coordinate
from toolkit.runs.metrics import MetricsWriter
from toolkit.runs.results import Contents, direct_frame, direct_variables, network_variables
from toolkit.runs.stopping import StopRequest
from toolkit.scenario.build import Built
from toolkit.scenario.sections import Sections
from toolkit.training.calibration import calibrate
from toolkit.training.diagnosis import SaturationCount, activation_inputs, activations
from toolkit.training.loop import Evaluation, TrainState, evaluate, train
from toolkit.training.problem import Batch, batch_from_tree

ADVICE = "lower update.optimizer.learning_rate or update.step_size, or limit the direction with update.clip"
GROUPS = ("params", "buffers", "optimizer")


@dataclass
class Session:
    """One run of training or direct optimisation in its directory."""

    sections: Sections
    built: Built
    directory: RunDirectory
    attributes: Mapping[str, Any]
    """Global attributes of the datasets."""
    events: Events
    stop: StopRequest

    def __post_init__(self) -> None:
        self._programs: dict[Any, Any] = {}
        self._compiled_before = 0.0
        self._frames: FrameWriter | None = None
        built, data = self.built, self.sections.data
        samples = None if built.validation is None else _count(built.validation)
        self._contents = Contents(self.sections, samples if data is not None and built.direct else None)

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self, resume: bool) -> TrainState:
        """Train from the start or from the checkpoint to the end; the state after the last update."""
        state = self._restore() if resume else self._start()
        options = self.sections.train
        assert self.built.trainer is not None
        assert self.built.batches is not None
        with MetricsWriter(self.directory.metrics_lines, state.step if resume else None) as metrics:
            if not resume:
                state, validated = self._validate(state)
                metrics.append({"step": 0, "wall_seconds": 0.0, **validated})
                self._save(state)
            steps = train(self.built.trainer, state, self.built.batches, options.steps, options.time_limit)
            for state, record in steps:
                last = state.step == options.steps or (
                    options.time_limit is not None and state.seconds >= options.time_limit
                )
                if state.step % options.validate_every == 0 or last:
                    state, validated = self._validate(state)
                    record |= validated
                metrics.append({"step": state.step, **record})
                self._record_frame(state, last)
                self.events.progress(state.step, options.steps, record)
                if state.step % options.checkpoint_every == 0 or last:
                    self._save(state)
                if self.stop.exit_code is not None and not last:
                    self._save(state)
                    self.close()
                    self.stop.check(f"step {state.step} is saved, `phinverse resume {self.directory.path}` goes on")
        self.close()
        return state

    @property
    def compile_seconds(self) -> float:
        """Time spent compiling and tracing so far, in all processes that worked on this run."""
        return self._compiled_before + self.built.problem.backend.trace_seconds

    def close(self) -> None:
        """Close the file of frames, if there is one."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    # --- start and resume -----------------------------------------------------------------------------------------

    def _start(self) -> TrainState:
        assert self.built.trainer is not None
        state = self.built.trainer.start(self.built.params, self.built.buffers)
        if self.built.direct:
            contents = self._contents
            coordinates = [*contents.coordinates(), step_coordinate()]
            if any(c.role == "force" for c in self.sections.controls.values()):
                time = self.sections.time
                coordinates.append(time_coordinate(np.arange(time.steps) * time.dt))
            self._frames = open_frames(
                self.directory,
                self.sections.output.format,
                direct_variables(contents),
                coordinates,
                self.attributes,
                append_dim="step",
                grid=self.sections.grid,
            )
            self._record_frame(state, True)
        return state

    def _restore(self) -> TrainState:
        """The state of the checkpoint; files are cut back to it."""
        arrays, counters = checkpoint.load(self.directory.checkpoint)
        b = self.built.problem.backend
        groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        for key, value in arrays.items():
            group, _, name = key.partition("/")
            groups[group][name] = b.array(value)
        self._compiled_before = counters["compile_seconds"]
        if self.built.direct:
            self._frames = resume_frames(self.directory, self.sections.output.format, counters["frames"])
        return TrainState(**groups, step=counters["step"], seconds=counters["seconds"])

    def _save(self, state: TrainState) -> None:
        b = self.built.problem.backend
        arrays = {
            f"{group}/{name}": b.numpy(value) for group in GROUPS for name, value in getattr(state, group).items()
        }
        frames = 0 if self._frames is None else self._frames.frames
        counters = {"step": state.step, "seconds": state.seconds, "frames": frames}
        counters["compile_seconds"] = self.compile_seconds
        checkpoint.save(self.directory.checkpoint, arrays, counters | {"backend": b.name})

    # --- validation and frames ------------------------------------------------------------------------------------

    def _validate(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """The state with calibrated buffers, and means over the validation samples; monitors are checked."""
        batch = self.built.validation
        state = self._calibrated(state)
        if batch is None:
            return state, {}
        problem, count = self.built.problem, _count(batch)
        size = count if self.built.direct else max(1, min(self.sections.train.batch_size, count))
        totals: dict[str, float] = {}
        largest: dict[str, float] = {}
        saturation = self._saturation_counts()
        for start in range(0, count, size):
            part = _part(batch, start, min(start + size, count))
            sums, measured = self._program("errors", state, part)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            checked = monitors.check(problem, measured, f"validation after step {state.step}", ADVICE)
            largest = {name: max(value, largest.get(name, value)) for name, value in checked.items()}
            met = self._program("activations", state, part) if saturation else {}
            for label, z in met.items():
                saturation[label].add(problem.backend.numpy(z))
        result = {name: value / count for name, value in totals.items()}
        for name, value in result.items():
            if not math.isfinite(value):
                raise DivergenceError(
                    f"validation after step {state.step}: {name} is {value}; lower update.optimizer.learning_rate"
                )
        shares = {monitors.saturation_metric(label): count.share for label, count in saturation.items()}
        return state, result | largest | shares

    def _saturation_counts(self) -> dict[str, SaturationCount]:
        """Empty ones by `<network>/<layer>`, none where nobody asked for them."""
        wanted = activations(self.built.problem) if self.sections.output.activations else []
        return {label: SaturationCount(kind) for label, kind in wanted}

    def _calibrated(self, state: TrainState) -> TrainState:
        if not state.buffers:
            return state
        problem, b = self.built.problem, self.built.problem.backend
        assert self.built.batches is not None
        batch = self.built.batches(max(state.step - 1, 0))

        def statistics(params: Any, buffers: Any, tree: Any) -> Any:
            return calibrate(problem, params, buffers, batch_from_tree(tree))

        if "calibrate" not in self._programs:
            self._programs["calibrate"] = b.compile(statistics, state.params, state.buffers, batch.tree())
        found = b.without_gradient(self._programs["calibrate"], state.params, state.buffers, batch.tree())
        return replace(state, buffers=found)

    def _program(self, kind: str, state: TrainState, batch: Batch) -> Any:
        """Run the compiled evaluation of this kind for this shape of batch."""
        problem = self.built.problem

        def errors(params: Any, buffers: Any, tree: Any) -> Any:
            result = evaluate(problem, params, buffers, batch_from_tree(tree))
            sums = {"validation_loss": problem.backend.xp.sum(result.loss)}
            if result.control_error is not None:
                sums["control_error"] = problem.backend.xp.sum(result.control_error)
            sums |= {name: problem.backend.xp.sum(value) for name, value in result.control_metrics.items()}
            return sums, monitors.measure(problem, result.initial, result.final)

        def fields(params: Any, buffers: Any, tree: Any) -> Any:
            return _parts(evaluate(problem, params, buffers, batch_from_tree(tree), record=not self.built.direct))

        def activated(params: Any, buffers: Any, tree: Any) -> Any:
            return activation_inputs(problem, params, buffers, batch_from_tree(tree))

        tree = batch.tree()
        key = (kind, _count(batch))
        if key not in self._programs:
            problem.prepare(batch)
            function = {"errors": errors, "fields": fields, "activations": activated}[kind]
            self._programs[key] = problem.backend.compile(function, state.params, state.buffers, tree)
        return problem.backend.without_gradient(self._programs[key], state.params, state.buffers, tree)

    def _record_frame(self, state: TrainState, last: bool) -> None:
        """Append the controls and states after this step to the fields of a direct optimisation."""
        if self._frames is None or not (last or state.step % self.sections.output.every == 0):
            return
        parts = self._numpy(self._program("fields", state, self.built.validation or Batch()))
        self._frames.append(state.step, direct_frame(self._contents, parts["controls"], parts["final"]))

    def write_fields(self, state: TrainState) -> None:
        """Write the fields of the first `output.samples` validation samples of a trained network; where networks act
        in the loop, what they did before the first update stands beside it."""
        batch, wanted = self.built.validation, self.sections.output.samples
        if self.built.direct or batch is None or wanted == 0:
            return
        batch = _part(batch, 0, min(wanted, _count(batch)))
        arrays = self._numpy(self._program("fields", state, batch))
        arrays |= self._numpy({"targets": batch.targets, "references": batch.references})
        untrained = self._numpy(self._program("fields", self._untrained(), batch)) if self.built.problem.loop else None
        contents = Contents(self.sections, _count(batch))
        variables, coordinates = network_variables(contents, arrays, untrained)
        form, grid = self.sections.output.format, self.sections.grid
        write_whole(self.directory, form, variables, coordinates, self.attributes, grid)

    def _untrained(self) -> TrainState:
        """The state that step 0 was validated with; a function of the seeds, so a resumed run has it too."""
        return self._calibrated(TrainState(self.built.params, self.built.buffers, optimizer={}))

    def _numpy(self, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
        b = self.built.problem.backend
        return {group: {key: b.numpy(value) for key, value in values.items()} for group, values in groups.items()}


def _parts(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "controls": dict(evaluation.controls),
        "initial": dict(evaluation.initial),
        "final": dict(evaluation.final),
        "states": dict(evaluation.states),
    }


def _count(batch: Batch) -> int:
    for group in batch.tree().values():
        for value in group.values():
            return int(value.shape[0])
    return 1


def _part(batch: Batch, start: int, stop: int) -> Batch:
    tree = {group: {k: v[start:stop] for k, v in values.items()} for group, values in batch.tree().items()}
    return batch_from_tree(tree)
