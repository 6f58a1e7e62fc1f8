"""A finished or running run, opened for reading."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import xarray as xr

from toolkit.core.errors import ScenarioError
from toolkit.runs import atomic, datasets, record
from toolkit.runs.datasets import Chunks
from toolkit.runs.directory import RunDirectory
from toolkit.runs.metrics import read_metrics, to_dataset
from toolkit.runs.record import RunRecord


class StoredRun:
    """A run directory with its datasets, read when first asked for; a context manager that closes them."""

    def __init__(self, path: Path, chunks: Chunks = None):
        self.directory = RunDirectory(path)
        self._chunks: Chunks = chunks
        self._opened: dict[str, xr.Dataset] = {}

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def scenario_text(self) -> str:
        """The resolved scenario as YAML."""
        return atomic.read_text(self.directory.scenario)

    @property
    def record(self) -> RunRecord:
        """Status and provenance as they are now; `interrupted` where the process was killed."""
        return record.observed(record.read(self.directory.record))

    @property
    def fields(self) -> xr.Dataset:
        """The fields, as dask arrays where they are large (see `open_run`); StorageError as long as there are none."""
        return self._dataset(self.directory.stored_fields or self.directory.fields, self._chunks)

    @property
    def metrics(self) -> xr.Dataset:
        """The metrics; of a run that has not ended, those recorded so far (read anew each time)."""
        lines = self.directory.metrics_lines
        ended = self.record.status in ("done", "failed") and self.directory.metrics.is_file()
        if ended or not lines.is_file():
            return self._dataset(self.directory.metrics)
        return to_dataset(read_metrics(lines))

    def close(self) -> None:
        """Close the files behind the datasets; what was not read by then is out of reach."""
        # The last one first: netCDF-C fails at the next open where files that were opened later are still open.
        for dataset in reversed(self._opened.values()):
            dataset.close()
        self._opened.clear()

    def __enter__(self) -> StoredRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"StoredRun({str(self.path)!r})"

    def _dataset(self, path: Path, chunks: Chunks = False) -> xr.Dataset:
        if path.name not in self._opened:
            self._opened[path.name] = datasets.open_dataset(path, chunks)
        return self._opened[path.name]


def open_run(path: str | Path, chunks: Chunks = None) -> StoredRun:
    """Open a run directory; ScenarioError if it is none.

    Fields of more than 256 MB (uncompressed) are dask arrays of a few frames or samples per chunk: a mean over `t`
    reads one chunk after the other. `chunks` overrules that: True always, False never, or sizes by dimension.
    """
    stored = StoredRun(Path(path), chunks)
    if not stored.directory.record.is_file():
        raise ScenarioError(f"{path} is not a run directory: it holds no {stored.directory.record.name}")
    return stored
