"""Run directories: `<out>/<scenario name>/<id>/`, and `<out>/<scenario name>/<id>/<cell>/` for sweeps.

The id is given by the user or is the UTC time with a short hash of the scenario (`20261121-131500-3f9a1c`). A
directory is claimed by creating it, which only one process can do; an automatic id that is taken gets a
number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from toolkit.core.errors import ScenarioError, StorageError
from toolkit.runs import atomic, record
from toolkit.runs.record import RunRecord

LAST = "last"
SWEEP_FILE = "sweep.json"
RECORD_FILE = "run.json"
SCENARIO_FILE = "scenario.yaml"
MAX_ATTEMPTS = 1000

_NAME = re.compile(r"\w[\w.,=+@-]*")


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, by what they hold."""

    path: Path

    @property
    def scenario(self) -> Path:
        """The resolved scenario, runnable as it is."""
        return self.path / SCENARIO_FILE

    @property
    def record(self) -> Path:
        """Status and provenance."""
        return self.path / RECORD_FILE

    @property
    def metrics_lines(self) -> Path:
        """Metrics, one JSON line per recorded step."""
        return self.path / "metrics.jsonl"

    @property
    def metrics(self) -> Path:
        """Metrics as a dataset."""
        return self.path / "metrics.nc"

    @property
    def fields(self) -> Path:
        """Fields as a dataset."""
        return self.path / "fields.nc"

    @property
    def fields_store(self) -> Path:
        """Fields as a Zarr store, of runs with `output.format: zarr`."""
        return self.path / "fields.zarr"

    @property
    def stored_fields(self) -> Path | None:
        """Whichever of the two there is; None as long as there is neither."""
        if self.fields.is_file():
            return self.fields
        return self.fields_store if self.fields_store.is_dir() else None

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.path / "checkpoint"

    @property
    def plots(self) -> Path:
        """Folder of the pictures."""
        return self.path / "plots"

    @property
    def reserve(self) -> Path:
        """Takes up space while the run goes on, for the record of its end."""
        return self.path / ".reserve"

    @property
    def sweep(self) -> Path:
        """What a sweep consists of; only above the cells of one."""
        return self.path / SWEEP_FILE


@dataclass(frozen=True)
class RunSummary:
    """One line of `phinverse list runs`."""

    path: Path
    id: str
    """`<id>`, or `<id>/<cell>` for a member of a sweep."""
    record: RunRecord


def check_name(name: str, what: str) -> str:
    """The name itself if it can be a folder on every system, otherwise a ScenarioError about `what`."""
    if name == LAST or len(name) > 200 or ".." in name or not _NAME.fullmatch(name) or name.endswith("."):
        raise ScenarioError(
            f"{what}: {name!r} cannot name a folder; use letters, digits and `_ . , = + @ -`, "
            f"start with a letter, digit or `_`, and do not use `..` or `{LAST}`"
        )
    return name


def create(
    out: Path, scenario_name: str, content_hash: str, run_id: str | None = None, prefix: str = ""
) -> RunDirectory:
    """Claim a new run directory; a `run_id` that is taken is refused with a ScenarioError, an automatic one begins with
    `prefix`."""
    parent = out / check_name(scenario_name, "name")
    _make(parent)
    if run_id is not None:
        path = parent / check_name(run_id, "--name")
        if not _claim(path) and not _abandoned(path):
            raise ScenarioError(
                f"--name: {path} exists already; choose another name, or go on with `phinverse resume {path}`"
            )
        return RunDirectory(path)
    stamp = f"{prefix}{datetime.now(UTC):%Y%m%d-%H%M%S}-{content_hash[:6]}"
    for attempt in range(1, MAX_ATTEMPTS):
        path = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        if _claim(path):
            return RunDirectory(path)
    raise StorageError(f"{MAX_ATTEMPTS} runs named {stamp} exist in {parent}; give this one a --name")


def create_cell(sweep: Path, cell: str) -> RunDirectory:
    """The directory of one member of a sweep; it may exist, since a sweep that is run again goes on."""
    path = sweep / check_name(cell, "sweep")
    _make(path)
    return RunDirectory(path)


def find(run: str, out: Path) -> Path:
    """The directory a user means by `last`, a path, `<scenario>/<id>` or an id that occurs once."""
    if run == LAST:
        return _newest(out)
    for path in (Path(run), out / run):
        if is_run(path):
            return path
    paths = [p for p in (*_members(out, "*/*"), *_members(out, "*/*/*")) if _identity(p, out) == run]
    if len(paths) == 1:
        return paths[0]
    if paths:
        listed = ", ".join(str(p) for p in paths)
        raise ScenarioError(f"{run!r} may mean any of {listed}; give the whole path")
    where = f"{run} holds no {RECORD_FILE}" if Path(run).is_dir() else f"no run {run!r} in {out}"
    raise ScenarioError(f"{where}; `phinverse list runs` shows what there is")


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run or of a sweep."""
    return (path / RECORD_FILE).is_file() or (path / SWEEP_FILE).is_file()


def members(path: Path) -> list[Path]:
    """The run itself, or the cells of a sweep that have begun."""
    if (path / RECORD_FILE).is_file():
        return [path]
    return [cell for cell in sorted(path.iterdir()) if (cell / RECORD_FILE).is_file()]


def list_runs(out: Path) -> list[RunSummary]:
    """All runs below a folder, oldest first, members of sweeps one by one, with their true status."""
    found = []
    for pattern in ("*/*", "*/*/*"):
        for path in _members(out, pattern):
            if (path / RECORD_FILE).is_file():
                known = record.observed(record.read(path / RECORD_FILE))
                found.append(RunSummary(path, _identity(path, out), known))
    return sorted(found, key=lambda run: (run.record.started, str(run.path)))


def _members(out: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(out.glob(pattern)) if is_run(path)]


def _identity(path: Path, out: Path) -> str:
    """`<id>` or `<id>/<cell>`: the path below the scenario's folder."""
    return path.relative_to(out).as_posix().partition("/")[2]


def _newest(out: Path) -> Path:
    paths = _members(out, "*/*")
    if not paths:
        raise ScenarioError(f"no run in {out} yet; start one with `phinverse run SCENARIO`")
    return max(paths, key=_age)


def _age(path: Path) -> tuple[float, str]:
    """When a run or sweep was started (seconds since the epoch), with its path to settle ties."""
    for file in (path / RECORD_FILE, path / SWEEP_FILE):
        if file.is_file():
            content = atomic.read_json(file)
            started = content.get("started") if isinstance(content, dict) else None
            if started:
                return datetime.fromisoformat(started).timestamp(), str(path)
    return path.stat().st_mtime, str(path)


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.storage_error("create", path, error) from error


def _abandoned(path: Path) -> bool:
    """Whether a folder is what a process leaves that is killed before it says what it runs; its lock decides the rest.

    Not asked of automatic names, whose folders may belong to a process that has begun in the same second.
    """
    return path.is_dir() and all(file.name == SCENARIO_FILE or atomic.is_leftover(file) for file in path.iterdir())


def _claim(path: Path) -> bool:
    """Create a folder; False if it was there."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise atomic.storage_error("create", path, error) from error
    return True
