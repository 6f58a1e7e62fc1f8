"""A training run with its files: metrics, validation, checkpoints, fields along the way, and where to go on.

The loop itself is `toolkit.training.loop.train`; here is what happens beside it. A checkpoint holds parameters,
buffers, optimizer state and counters; batches are functions of the step number, so nothing else is needed to go on
exactly where the run stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
from toolkit.training.data import Batches
from toolkit.training.diagnosis import SaturationCount, activation_inputs, activations
from toolkit.training.joint import GROUPS, Made
from toolkit.training.loop import Evaluation, TrainState, evaluate, timed_step, unfinished
from toolkit.training.problem import Batch, batch_from_tree

ADVICE = "lower update.optimizer.learning_rate or update.step_size, or limit the direction with update.clip"


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
    programs: dict[Any, Any] = field(default_factory=dict)
    """What is compiled beside the training step, by what it is for; runs that differ in their seed alone may share."""
    others_seconds: float = 0.0
    """Part of the backend's `trace_seconds` that went into other runs."""
    made: Made | None = None
    """The next update, if somebody has made it for this run."""
    changed: bool = False
    """Whether the state is not that of the last update any more; for others to set back."""

    def __post_init__(self) -> None:
        self._compiled_before = 0.0
        self.together = 0
        """Updates that were made with those of other runs, also before it was resumed."""
        self._ahead: tuple[Made, float] | None = None
        self.measured: Mapping[str, float] = {}
        """Of the last update that this run has made alone."""
        self._frames: FrameWriter | None = None
        built, data = self.built, self.sections.data
        samples = None if built.validation is None else _count(built.validation)
        self._contents = Contents(self.sections, samples if data is not None and built.direct else None)

    # --- the run --------------------------------------------------------------------------------------------------

    def updates(self, resume: bool) -> Iterator[Session]:
        """Train from the start or from the checkpoint to the end; before each update the caller has the word, who may
        put it into `made`."""
        self._state = self._restore() if resume else self._start()
        options = self.sections.train
        with MetricsWriter(self.directory.metrics_lines, self.step if resume else None) as metrics:
            if not resume:
                metrics.append({"step": 0, "wall_seconds": 0.0, **self._validate()})
                self._save()
            while unfinished(self.step, self.seconds, options.steps, options.time_limit):
                yield self
                record = self._update()
                last = not unfinished(self.step, self.seconds, options.steps, options.time_limit)
                if self.step % options.validate_every == 0 or last:
                    record |= self._validate()
                metrics.append({"step": self.step, **record})
                self._record_frame(last)
                self.events.progress(self.step, options.steps, record)
                if self.step % options.checkpoint_every == 0 or last:
                    self._save()
                if self.stop.exit_code is not None and not last:
                    self._save()
                    self.close()
                    self.stop.check(f"step {self.step} is saved, `phinverse resume {self.directory.path}` goes on")
        self.close()

    @property
    def step(self) -> int:
        """Number of updates done."""
        return self._state.step if self._ahead is None else self._ahead[0].step

    @property
    def seconds(self) -> float:
        """Training time so far, compilation not counted."""
        return self._state.seconds if self._ahead is None else self._ahead[1]

    @property
    def state(self) -> TrainState:
        """What training has changed so far."""
        if self._ahead is not None:
            # Cut out of those of all runs only now: between validations nobody looks at it.
            made, seconds = self._ahead
            self._state, self._ahead = made.state(seconds), None
        return self._state

    @property
    def batches(self) -> Batches:
        """What each update looks at."""
        assert self.built.batches is not None
        return self.built.batches

    @property
    def compile_seconds(self) -> float:
        """Time spent compiling and tracing so far, in all processes that worked on this run."""
        return self._compiled_before + self.built.problem.backend.trace_seconds - self.others_seconds

    def _update(self) -> dict[str, float]:
        """Make the next update, or take the one that was made; its record."""
        made, self.made = self.made, None
        if made is not None:
            seconds = self.seconds + made.seconds
            self._ahead = made, seconds
            self.together += 1
            return {**made.metrics, "wall_seconds": seconds}
        assert self.built.trainer is not None
        self._state, self.measured = timed_step(self.built.trainer, self.state, self.batches)
        return dict(self.measured)

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
            self._record_frame_of(state)
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
        self.together = counters.get("together", 0)
        if self.built.direct:
            self._frames = resume_frames(self.directory, self.sections.output.format, counters["frames"])
        return TrainState(**groups, step=counters["step"], seconds=counters["seconds"])

    def _save(self) -> None:
        b, state = self.built.problem.backend, self.state
        arrays = {
            f"{group}/{name}": b.numpy(value) for group in GROUPS for name, value in getattr(state, group).items()
        }
        frames = 0 if self._frames is None else self._frames.frames
        counters = {"step": state.step, "seconds": state.seconds, "frames": frames, "together": self.together}
        counters["compile_seconds"] = self.compile_seconds
        checkpoint.save(self.directory.checkpoint, arrays, counters | {"backend": b.name})

    # --- validation and frames ------------------------------------------------------------------------------------

    def _validate(self) -> dict[str, float]:
        """Calibrate the buffers; means over the validation samples. Monitors are checked."""
        batch = self.built.validation
        state = self._calibrated(self.state)
        if state is not self._state:
            self._state, self.changed = state, True
        if batch is None:
            return {}
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
        return result | largest | shares

    def _saturation_counts(self) -> dict[str, SaturationCount]:
        """Empty ones by `<network>/<layer>`, none where nobody asked for them."""
        wanted = activations(self.built.problem) if self.sections.output.activations else []
        return {label: SaturationCount(kind) for label, kind in wanted}

    def _calibrated(self, state: TrainState) -> TrainState:
        if not state.buffers:
            return state
        problem, b = self.built.problem, self.built.problem.backend
        batch = self.batches(max(state.step - 1, 0))

        def statistics(params: Any, buffers: Any, tree: Any) -> Any:
            return calibrate(problem, params, buffers, batch_from_tree(tree))

        if "calibrate" not in self.programs:
            self.programs["calibrate"] = b.compile(statistics, state.params, state.buffers, batch.tree())
        found = b.without_gradient(self.programs["calibrate"], state.params, state.buffers, batch.tree())
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
        if key not in self.programs:
            problem.prepare(batch)
            function = {"errors": errors, "fields": fields, "activations": activated}[kind]
            self.programs[key] = problem.backend.compile(function, state.params, state.buffers, tree)
        return problem.backend.without_gradient(self.programs[key], state.params, state.buffers, tree)

    def _record_frame(self, last: bool) -> None:
        """Append the controls and states after this step to the fields of a direct optimisation, if it is time."""
        if self._frames is not None and (last or self.step % self.sections.output.every == 0):
            self._record_frame_of(self.state)

    def _record_frame_of(self, state: TrainState) -> None:
        assert self._frames is not None
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
