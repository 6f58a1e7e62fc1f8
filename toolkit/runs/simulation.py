"""A plain simulation, streamed: frames are written as they come, and memory does not grow with their number."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.physics.rollout import Controls
from toolkit.runs import checkpoint, monitors
from toolkit.runs.directory import RunDirectory
from toolkit.runs.events import Events
from toolkit.runs.field_output import FrameWriter, open_frames, resume_frames
from toolkit.runs.layout import time_coordinate
from toolkit.runs.metrics import MetricsWriter
from toolkit.runs.names import TIME
from toolkit.runs.results import Contents, frame_steps, stored
from toolkit.runs.stopping import StopRequest
from toolkit.scenario.build import Built
from toolkit.scenario.sections import Sections
from toolkit.training.problem import CONTROL, Batch

CHECKPOINT_SECONDS = 5.0
"""Time between checkpoints: frames after the last one are computed anew by a resumed run."""


def simulate(
    sections: Sections,
    built: Built,
    directory: RunDirectory,
    attributes: Mapping[str, Any],
    events: Events,
    stop: StopRequest,
    resume: bool,
) -> None:
    """Run all time steps and write every `output.every`-th state, the start and the end."""
    problem, b = built.problem, built.problem.backend
    contents = Contents(sections, _samples(sections, built))
    frames = frame_steps(sections.time.steps, sections.output.every)
    batch = _cut(built.validation, contents.samples)
    # Nothing is unknown: controls have their start values, or what the data say.
    started = {control.key: built.params.get(f"{CONTROL}/{control.name}") for control in problem.controls}
    x = {**{k: v for k, v in started.items() if v is not None}, **batch.context, **batch.references}
    x = {key: value[: contents.samples] for key, value in x.items()}
    initial = problem.initial_state(x, {}) if x else _at_rest(built)
    state, done = _restore(directory, built) if resume else (initial, 0)
    advance = _Advance(built, x)
    saved = time.monotonic()
    with (
        closing(_open(sections, contents, directory, attributes, done if resume else None)) as writer,
        MetricsWriter(directory.metrics_lines, frames[done - 1] if resume else None) as metrics,
    ):
        for i, step in enumerate(frames[done:], start=done):
            if i > 0:
                state = advance(state, frames[i - 1], step - frames[i - 1])
            measured = b.without_gradient(lambda s: monitors.measure(problem, initial, s), state)
            record = monitors.check(problem, measured, f"time step {step}")
            writer.append(step * sections.time.dt, _frame(contents, built, state))
            metrics.append({"step": step, **record})
            events.progress(step, sections.time.steps, record)
            last = step == sections.time.steps
            if i == 0 or last or stop.exit_code is not None or time.monotonic() - saved > CHECKPOINT_SECONDS:
                arrays = {name: b.numpy(value) for name, value in state.items()}
                checkpoint.save(directory.checkpoint, arrays, {"frames": i + 1, "step": step})
                saved = time.monotonic()
            if not last:
                stop.check(f"time step {step} is saved, `phinverse resume {directory.path}` goes on")


class _Advance:
    """States some time steps later, compiled once per number of steps."""

    def __init__(self, built: Built, x: Mapping[str, Any]):
        self._built, self._x = built, x
        self._programs: dict[int, Any] = {}

    def __call__(self, state: dict[str, Any], start: int, steps: int) -> dict[str, Any]:
        problem, b = self._built.problem, self._built.problem.backend
        controls = {
            kind: {k.partition(".")[2]: v for k, v in self._x.items() if k.startswith(kind + ".")}
            for kind in ("force", "source", "parameter")
        }
        controls["force"] = {name: value[:, start : start + steps] for name, value in controls["force"].items()}
        at = b.array(np.asarray(start))
        if steps not in self._programs:
            rollout = replace(problem.rollout, steps=steps, _traced={})
            rollout.prepare(state, Controls(**controls)) if problem.plugin.traceable else None

            def run(state: Any, controls: Any, at: Any) -> Any:
                return rollout(state, Controls(**controls), start=at).final

            self._programs[steps] = b.compile(run, state, controls, at)
        return b.without_gradient(self._programs[steps], state, controls, at)


def _samples(sections: Sections, built: Built) -> int | None:
    """Samples to simulate: those of the data, at most `output.samples`; None without data."""
    if sections.data is None or built.validation is None:
        return None
    first = next(iter(next(group for group in built.validation.tree().values() if group).values()))
    return min(int(first.shape[0]), max(1, sections.output.samples))


def _cut(batch: Batch | None, samples: int | None) -> Batch:
    if batch is None:
        return Batch()
    groups = {g: {k: v[:samples] for k, v in values.items()} for g, values in batch.tree().items()}
    return Batch(groups["targets"], groups["references"], groups["context"])


def _at_rest(built: Built) -> dict[str, Any]:
    problem = built.problem
    return {n: problem.backend.zeros((1, *layout.shape)) for n, layout in problem.rollout.layouts.items()}


def _open(
    sections: Sections,
    contents: Contents,
    directory: RunDirectory,
    attributes: Mapping[str, Any],
    done: int | None,
) -> FrameWriter:
    if done is not None:
        return resume_frames(directory, sections.output.format, done)
    return open_frames(
        directory,
        sections.output.format,
        [contents.field_variable(spec, (TIME,)) for spec in contents.fields],
        [*contents.coordinates(), time_coordinate()],
        attributes,
        append_dim=TIME,
        grid=sections.grid,
    )


def _restore(directory: RunDirectory, built: Built) -> tuple[dict[str, Any], int]:
    arrays, counters = checkpoint.load(directory.checkpoint)
    return {name: built.problem.backend.array(value) for name, value in arrays.items()}, counters["frames"]


def _frame(contents: Contents, built: Built, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    values = {spec.name: stored(spec, built.problem.backend.numpy(state[spec.name])) for spec in contents.fields}
    return {name: value if contents.samples is not None else value[0] for name, value in values.items()}
