"""Checkpoints: named arrays (safetensors) and plain data (JSON) that always belong together.

    checkpoint/
      state.json                 the state, names in order, SHA-256 of the arrays and of itself
      arrays-<hash>.safetensors
      previous.json              the checkpoint before, whose arrays are kept too

The arrays are written first, under a name that holds their hash; then `state.json` is replaced in one step,
which is the moment the new checkpoint counts. Whenever the process dies, `state.json` names arrays that are
complete. Files that no checkpoint names are removed by the next save.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from toolkit.core.errors import StorageError
from toolkit.runs import atomic

STATE_FILE = "state.json"
PREVIOUS_FILE = "previous.json"
FORMAT = 1
DTYPES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float32",
    "float64",
)

_log = logging.getLogger(__name__)


def save(directory: Path, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint as a whole; `state` is JSON data, array dtypes are those of DTYPES."""
    for name, array in arrays.items():
        if str(np.asarray(array).dtype) not in DTYPES:
            raise ValueError(f"array {name!r} of type {np.asarray(array).dtype}; supported: {', '.join(DTYPES)}")
    # safetensors writes the memory as it lies: only C order is what the shape says.
    data = save_arrays({name: np.array(array, order="C") for name, array in arrays.items()})
    digest = hashlib.sha256(data).hexdigest()
    content = {"format": FORMAT, "arrays_sha256": digest, "names": list(arrays), "state": dict(state)}
    text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic.remove_leftovers(directory)
        atomic.write_bytes(_arrays_file(directory, digest), data)
        current = directory / STATE_FILE
        if current.exists():
            atomic.write_bytes(directory / PREVIOUS_FILE, current.read_bytes())
        atomic.write_text(current, text)
        _remove_unnamed(directory)
    except OSError as error:
        raise atomic.storage_error("write", directory, error) from error


def load(directory: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays (in the order they were saved) and state of the newest checkpoint that is whole.

    A damaged one is logged as a warning and the one before is taken; StorageError if there is none.
    """
    problems = []
    for name in (STATE_FILE, PREVIOUS_FILE):
        if not (directory / name).exists():
            continue
        try:
            checkpoint = _read(directory, name)
        except StorageError as error:
            problems.append(str(error))
            continue
        if problems:
            _log.warning("%s; using the checkpoint before it", problems[0])
        return checkpoint
    if problems:
        raise StorageError("; ".join(problems) + "; no other checkpoint is left, start the run again")
    raise StorageError(f"no checkpoint in {directory}; the run stopped before its first one, start it again")


def exists(directory: Path) -> bool:
    """Whether a checkpoint was ever completed here."""
    return (directory / STATE_FILE).exists()


def remove(directory: Path) -> None:
    """Delete the checkpoint and the one before it, if there are any."""
    try:
        for name in (PREVIOUS_FILE, STATE_FILE):
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise atomic.storage_error("remove", directory, error) from error


def _read(directory: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    content = atomic.read_json(directory / name)
    expected = content.pop("sha256", None) if isinstance(content, dict) else None
    if expected is None or expected != _digest(content):
        raise StorageError(f"checkpoint {directory / name} is damaged: its content does not match its SHA-256")
    if content["format"] != FORMAT:
        raise StorageError(f"checkpoint {directory / name} has format {content['format']}; this version reads {FORMAT}")
    path = _arrays_file(directory, content["arrays_sha256"])
    try:
        data = path.read_bytes()
    except OSError as error:
        raise atomic.storage_error("read", path, error) from error
    if hashlib.sha256(data).hexdigest() != content["arrays_sha256"]:
        raise StorageError(f"checkpoint {path} is damaged: its content does not match its SHA-256")
    try:
        arrays = load_arrays(data)
    except SafetensorError as error:
        raise atomic.storage_error("read", path, error) from error
    return {key: arrays[key] for key in content["names"]}, content["state"]


def _arrays_file(directory: Path, digest: str) -> Path:
    return directory / f"arrays-{digest[:16]}.safetensors"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove_unnamed(directory: Path) -> None:
    """Delete arrays that neither the checkpoint nor the one before it names."""
    texts = [path.read_text() for path in (directory / STATE_FILE, directory / PREVIOUS_FILE) if path.exists()]
    for path in directory.glob("arrays-*.safetensors"):
        digest = path.stem.removeprefix("arrays-")
        if not any(digest in text for text in texts):
            path.unlink(missing_ok=True)
