"""Texts of a page: the scenario with its colours, commands, environment, files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pygments.lexers.data import YamlLexer
from pygments.token import Comment, Keyword, Literal, Name, Number, Punctuation, String

from toolkit.core.byte_size import size
from toolkit.runs.record import RunRecord

REPORT = "report.html"
MAX_TEXT = 60_000
"""Characters of a scenario that are shown; a longer one is still in the file."""
CLASSES = ((Name.Tag, "k"), (Comment, "c"), (Number, "n"), (Keyword, "n"), (String, "s"), (Punctuation, "p"))


def highlighted(text: str) -> list[tuple[str, str]]:
    """(class, text) pieces of a YAML text."""
    found: list[tuple[str, str]] = []
    for token, piece in YamlLexer(stripnl=False, ensurenl=False).get_tokens(text[:MAX_TEXT]):
        plain = token in Literal.Scalar.Plain
        kind = "n" if plain and _reads_as_number(piece) else next((c for t, c in CLASSES if token in t), "")
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + piece)
        else:
            found.append((kind, piece))
    return found


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false", "null")
    return True


def commands_of(record: RunRecord) -> list[str]:
    commands = []
    commit = (record.git_commit or "").removesuffix("+changes")
    if commit:
        commands.append(f"git checkout {commit}")
    return [*commands, "phinverse run scenario.yaml"]


def environment(record: RunRecord) -> list[tuple[str, str]]:
    details = record.details
    precision = details.get("precision")
    found = [
        ("command", shlex.join(record.command)),
        ("backend", record.backend),
        ("device", record.device),
        ("precision", _pairs(precision) if isinstance(precision, dict) else ""),
        ("seeds", _pairs(record.seeds)),
        ("git commit", record.git_commit or ""),
        ("versions", _pairs(record.versions, " ")),
        ("python", record.python),
        ("platform", record.platform),
        ("host", record.host),
        ("scenario hash", record.content_hash),
    ]
    more = {k: v for k, v in details.items() if k not in ("precision", "peak_memory_bytes")}
    return [(word, text) for word, text in [*found, ("more", _pairs(more))] if text]


def _pairs(values: Any, between: str = " = ") -> str:
    return ", ".join(f"{key}{between}{value}" for key, value in dict(values).items())


@dataclass(frozen=True)
class File:
    """A file or folder of a run."""

    name: str
    size: str
    what: str


WHAT = {
    "scenario.yaml": "the resolved scenario, runnable as it is",
    "run.json": "status and provenance",
    "metrics.jsonl": "metrics, a line per recorded step",
    "metrics.nc": "metrics as a dataset",
    "fields.nc": "fields as a dataset",
    "fields.zarr": "fields as a dataset in many files",
    "checkpoint": "parameters and state, to resume or predict",
    "plots": "pictures",
    "sweep.json": "axes and members of the sweep",
}


def files(path: Path, members: tuple[str, ...] = ()) -> list[File]:
    """What a directory holds, without temporary files, this page and the folders of members."""
    return list(_files(path, members))


def _files(path: Path, members: tuple[str, ...]) -> Iterator[File]:
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or entry.name in (REPORT, *members):
            continue
        below = [entry] if entry.is_file() else [p for p in entry.rglob("*") if p.is_file()]
        name = entry.name + ("/" if entry.is_dir() else "")
        yield File(name, size(sum(p.stat().st_size for p in below)), WHAT.get(entry.name, ""))
