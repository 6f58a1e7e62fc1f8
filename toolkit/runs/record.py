"""`run.json`: what became of a run, rewritten atomically at every change of status.

A run that was killed cannot write its own end. The record therefore names its process (host, id, start time);
a record that says `running` while that process is gone is reported as `interrupted`.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.errors import StorageError
from toolkit.runs import atomic
from toolkit.runs.provenance import Provenance, utc_now

TOGETHER = "updates_together"
"""Detail: number of updates that one program has made with those of other runs; their seconds are shares."""
STATUSES = ("running", "done", "failed", "interrupted")


@dataclass(frozen=True)
class RunRecord:
    """The contents of `run.json`; times are ISO 8601 in UTC."""

    status: str
    """One of STATUSES."""
    reason: str | None = None
    """Why it failed or stopped, in one paragraph; None while it goes well."""
    scenario: str = ""
    """Name of the scenario."""
    content_hash: str = ""
    """Stable hash of the resolved scenario."""
    started: str = ""
    finished: str | None = None
    backend: str = ""
    device: str = ""
    seeds: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    platform: str = ""
    git_commit: str | None = None
    command: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0
    process_started: str | None = None
    """Identity of the process beyond its id, which the system uses again."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain data that only some runs have: precision, compile seconds, exit code, …"""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {STATUSES}, not {self.status!r}")


def begin(scenario: str, content_hash: str, provenance: Provenance, **more: Any) -> RunRecord:
    """A record with status `running` for the process that calls; `more`: backend, device, seeds, details."""
    return RunRecord(
        status="running",
        scenario=scenario,
        content_hash=content_hash,
        started=utc_now(),
        versions=provenance.versions,
        python=provenance.python,
        platform=provenance.platform,
        git_commit=provenance.git_commit,
        command=provenance.command,
        **_this_process(),
        **more,
    )


def write(path: Path, record: RunRecord) -> None:
    """Write `run.json` as a whole."""
    atomic.write_json(path, dataclasses.asdict(record))


def read(path: Path) -> RunRecord:
    """Read `run.json` as it was written; keys of later versions are ignored."""
    content = atomic.read_json(path)
    if not isinstance(content, dict) or content.get("status") not in STATUSES:
        raise StorageError(f"{path} is not the record of a run: `status` must be one of {', '.join(STATUSES)}")
    known = {f.name for f in dataclasses.fields(RunRecord)}
    kept = {key: value for key, value in content.items() if key in known}
    return RunRecord(**{**kept, "command": tuple(kept.get("command", ()))})


def update(path: Path, **changes: Any) -> RunRecord:
    """Change keys of `run.json`; leaving `running` stamps `finished`, going back to it names this process."""
    stamps: dict[str, Any] = {}
    if changes.get("status") == "running":
        stamps = {"finished": None, "reason": None, **_this_process()}
    elif "status" in changes:
        stamps = {"finished": utc_now()}
    record = dataclasses.replace(read(path), **{**stamps, **changes})
    write(path, record)
    return record


def observed(record: RunRecord) -> RunRecord:
    """The record as it is in truth: `interrupted` if it says `running` but its process is gone.

    A process on another host cannot be asked; its record is believed.
    """
    if record.status != "running" or record.host != platform.node():
        return record
    if record.process_started and record.process_started == _process_identity(record.pid):
        return record
    reason = f"process {record.pid} on {record.host} ended without a word; `phinverse resume` goes on"
    return dataclasses.replace(record, status="interrupted", reason=reason)


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": platform.node(), "pid": pid, "process_started": _process_identity(pid)}


def _process_identity(pid: int) -> str | None:
    """When a process started, as the system tells it; None if there is no such process."""
    status = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # The name (field 2) may hold spaces and brackets: count behind its end. Field 22: start, in
            # ticks.
            fields = status.read_text(errors="replace").rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        # A zombie has ended; only its parent has not noticed.
        return None if fields[0] == "Z" else f"{boot}+{fields[19]}"
    try:
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
