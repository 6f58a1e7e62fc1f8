"""One writer per run directory: a lock that the operating system drops when its process ends, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.core.errors import ScenarioError
from toolkit.runs import atomic

if sys.platform != "win32":
    import fcntl


class DirectoryInUse(ScenarioError):
    """Another process works in the run directory."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Own the directory inside the block; DirectoryInUse if another process does. Windows cannot lock a folder."""
    if sys.platform == "win32":
        yield
        return
    # The folder itself is locked: any file in it is replaced now and then, and a lock file would have to be kept.
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise atomic.storage_error("lock", directory, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise DirectoryInUse(f"{directory} is in use by another process; wait for it, or stop it first") from None
    try:
        yield
    finally:
        os.close(handle)
