"""Files that are either there completely or not at all.

Contents go to a temporary name in the same folder, reach the disk (fsync), then take the final name in one
step (os.replace, atomic on POSIX and on Windows); a reader never sees half a file, whenever the writer dies.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.core.errors import StorageError

PART = ".part"
HARDLY_ANY = 2**20
"""Bytes."""

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder with --out",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder with --out",
    errno.EROFS: "the file system is read-only; choose another folder with --out",
    errno.EACCES: "permission denied; choose a folder you may write to with --out",
    errno.EPERM: "permission denied; choose a folder you may write to with --out",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "it exists already",
}


def storage_error(doing: str, path: Path, error: Exception) -> StorageError:
    """What went wrong with a file, in words: `cannot write runs/a/run.json: the disk is full; …`."""
    number = error.errno if isinstance(error, OSError) else None
    if doing == "write" and number in (None, errno.EACCES) and _full(path.parent):
        # The NetCDF library says "HDF error", or "permission denied" for a file that it cannot begin.
        number = errno.ENOSPC
    reason = _REASONS.get(number or 0) or str(error) or type(error).__name__
    if doing == "write" and number is None:
        reason += "; is there space on the disk? Free some, or choose another folder with --out"
    return StorageError(f"cannot {doing} {path}: {reason}")


def _full(folder: Path) -> bool:
    """Whether there is hardly any space left for a file."""
    try:
        return shutil.disk_usage(folder).free < HARDLY_ANY
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; a no-op where folders cannot be opened (Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends well, and vanishes otherwise."""
    # The suffix is kept last, because writers of pictures and archives choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{PART}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error("write", path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, which the block creates; one that was there is moved away first, then deleted."""
    temporary, old = (path.with_name(f".{path.stem}.{os.getpid()}{word}{PART}{path.suffix}") for word in ("", ".old"))
    try:
        _remove_folder(temporary)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error("write", path, error) from error
    finally:
        _remove_folder(temporary)
        _remove_folder(old)


def swap(path: Path, data: bytes) -> None:
    """Write a file that readers find whole, as it was or as it is now; folders that are missing are made.

    Quicker than `write_bytes`: it survives the end of the process, but perhaps not a loss of power.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        temporary.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
    temporary.replace(path)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all it holds; one that is not there is no error."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error("remove", path, error) from error


def _remove_folder(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as a whole."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as a whole, with Unix line ends on every system."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON, keys in the order given; ValueError for NaN and infinities."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """The text of a file; StorageError says why it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise storage_error("read", path, error) from error


def read_json(path: Path) -> Any:
    """The plain data in a JSON file; StorageError if it is missing or not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise StorageError(f"cannot read {path}: it is not JSON ({error}); restore or remove the file") from error


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left in a folder under temporary names; call it only when no writer is alive."""
    for path in folder.glob(f".*{PART}*"):
        if path.is_file():
            path.unlink(missing_ok=True)
        _remove_folder(path)


def is_leftover(path: Path) -> bool:
    """Whether a file or folder has the name that it has while it is written."""
    return path.name.startswith(".") and PART in path.name
