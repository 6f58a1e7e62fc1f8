"""What `run.json` says as a run begins, goes on and ends, however it ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from toolkit.core.backend import Backend
from toolkit.core.errors import Interrupted, PhinverseError, StorageError
from toolkit.runs import atomic, checkpoint, peak_memory, record
from toolkit.runs.directory import RunDirectory
from toolkit.runs.provenance import collect
from toolkit.scenario.scenario import Scenario

ERROR = "error"
"""Detail of a failed run: the class of what made it fail."""
RESERVED = 16384
"""Bytes of a file that gives its place to the record of a run that fails."""

_log = logging.getLogger(__name__)


def status_of(directory: RunDirectory) -> str:
    """The true status of a run directory, "" of one that has not begun."""
    return record.observed(record.read(directory.record)).status if directory.record.is_file() else ""


def goes_on(directory: RunDirectory, status: str) -> bool:
    """Whether a run that is not done goes on from its checkpoint: also one whose disk was full."""
    full = status == "failed" and record.read(directory.record).details.get(ERROR) == StorageError.__name__
    return status == "interrupted" or full


def begin(
    directory: RunDirectory, scenario: Scenario, backend: Backend, command: tuple[str, ...], resume: bool
) -> None:
    """Say that this process is at work, and what on; what a killed one left half written is removed."""
    for folder in (directory.path, directory.plots):
        atomic.remove_leftovers(folder)
    if resume:
        details = {key: value for key, value in record.read(directory.record).details.items() if key != ERROR}
        record.update(directory.record, status="running", details=details)
        return
    # Killed before its first own checkpoint, the run must not go on from that of an earlier attempt.
    checkpoint.remove(directory.checkpoint)
    atomic.write_text(directory.scenario, scenario.to_yaml())
    sections = scenario.sections
    seeds = {"run": sections.run.seed} | ({"data": sections.data.seed} if sections.data else {})
    precision = {"physics": backend.physics_dtype, "network": backend.network_dtype}
    record.write(
        directory.record,
        record.begin(
            scenario.name,
            scenario.content_hash(),
            collect(command),
            backend=backend.name,
            device=backend.device,
            seeds=seeds,
            details={"precision": precision},
        ),
    )


@contextmanager
def told(directory: RunDirectory) -> Iterator[None]:
    """Say how the block ends: done, failed or interrupted, and why; what it raises goes on to the caller."""
    try:
        # Space for the last word, should the disk be full by then. Random, since zeros may take none.
        atomic.write_bytes(directory.reserve, os.urandom(RESERVED))
        yield
    except Interrupted as error:
        _finish(directory, "interrupted", str(error), exit_code=error.exit_code)
        raise
    except KeyboardInterrupt:
        _finish(directory, "interrupted", "interrupted twice", exit_code=130)
        raise
    except Exception as error:
        try:
            _finish(directory, "failed", reason(error), getattr(error, "exit_code", 1), type(error).__name__)
        except StorageError as untold:
            # Its process gone, the run counts as interrupted; what went wrong first is what matters.
            _log.warning("%s", untold)
        raise
    _finish(directory, "done", None, exit_code=0)


def reason(error: Exception) -> str:
    """Why something failed, in words; of a bug also what kind of error it was."""
    return str(error) if isinstance(error, PhinverseError) else f"{type(error).__name__}: {error}"


def _finish(directory: RunDirectory, status: str, why: str | None, exit_code: int, error: str | None = None) -> None:
    directory.reserve.unlink(missing_ok=True)
    details = {**record.read(directory.record).details, "exit_code": exit_code}
    details |= {} if error is None else {ERROR: error}
    peak = peak_memory.peak_bytes()
    details |= {} if peak is None else {"peak_memory_bytes": peak}
    record.update(directory.record, status=status, reason=why, details=details)
