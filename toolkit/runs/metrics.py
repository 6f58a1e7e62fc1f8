"""Metrics of a training: one JSON line per recorded step while it runs, a Dataset when it ends.

A line holds `step` (number of updates done) and what was measured there, non-finite numbers as the text
`nan`, `inf` or `-inf`, since JSON has none. A process that is killed may leave a torn last line; it is
skipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xarray as xr

from toolkit.core.errors import StorageError
from toolkit.runs import atomic, datasets, names

Record = dict[str, float]


class MetricsWriter:
    """Appends records to `metrics.jsonl`, each handed to the operating system before the call returns.

    With `resume_step`, lines of later steps are removed first: their updates will be done again. Without it
    the file starts empty.
    """

    def __init__(self, path: Path, resume_step: int | None = None):
        self._path = path
        kept = [] if resume_step is None else [r for r in read_metrics(path) if r["step"] <= resume_step]
        atomic.write_text(path, "".join(_line(record) for record in kept))
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def append(self, record: Mapping[str, float]) -> None:
        """Add one record; it must have a `step`."""
        if "step" not in record:
            raise ValueError(f"a record of metrics needs `step`, got {sorted(record)}")
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise atomic.storage_error("write", self._path, error) from error

    def close(self) -> None:
        """Close the file; calling it twice does no harm."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(record: Mapping[str, float]) -> str:
    plain = {"step": int(record["step"])}
    plain |= {name: _to_json(float(value)) for name, value in record.items() if name != "step"}
    return json.dumps(plain, allow_nan=False) + "\n"


def _to_json(value: float) -> Any:
    return value if math.isfinite(value) else repr(value)


def read_metrics(path: Path) -> list[Record]:
    """All records of a `metrics.jsonl`; a torn last line is skipped, one in the middle is a StorageError."""
    if not path.exists():
        return []
    lines = atomic.read_text(path).split("\n")
    records = []
    # Behind the last line end there is nothing, or the line that was being written when the process died.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            content = json.loads(line)
            record = {name: float(value) for name, value in content.items()}
            records.append({**record, "step": int(content["step"])})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise StorageError(
                f"{path}:{number}: not a record of metrics ({error}); remove the line and resume"
            ) from error
    return records


def to_dataset(
    records: Iterable[Mapping[str, float]],
    attributes: Mapping[str, Any] | None = None,
    descriptions: Mapping[str, tuple[str, str]] | None = None,
) -> xr.Dataset:
    """Records as a Dataset along `step`, NaN where not recorded; of equal steps the last one counts.

    `attributes` are global (`compile_seconds` among them); `descriptions` gives long name and units of
    metrics beyond `names.METRICS`.
    """
    rows: dict[int, dict[str, float]] = {}
    for record in records:
        rows.setdefault(int(record["step"]), {}).update(record)
    steps = sorted(rows)
    described = names.METRICS | dict(descriptions or {})
    extra = sorted({name for row in rows.values() for name in row} - set(names.METRICS) - {"step"})
    variables = {}
    for name in (*names.METRICS, *extra):
        long_name, units = described.get(name, (name.replace("_", " "), "1"))
        values = np.array([rows[step].get(name, math.nan) for step in steps], dtype=np.float64)
        about = {"long_name": long_name, "units": units, "coverage_content_type": names.QUALITY}
        variables[name] = (names.STEP, values, about)
    about = {
        "long_name": names.LONG_NAMES[names.STEP],
        "units": "1",
        "coverage_content_type": names.COORDINATE,
    }
    coordinate = (names.STEP, np.array(steps, dtype=np.int64), about)
    return xr.Dataset(variables, {names.STEP: coordinate}, datasets.clean_attributes(attributes or {}))


def write_metrics_nc(
    path: Path,
    records: Sequence[Mapping[str, float]],
    attributes: Mapping[str, Any],
    descriptions: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Write the Dataset of these records as a whole."""
    datasets.write_dataset(path, to_dataset(records, attributes, descriptions))
