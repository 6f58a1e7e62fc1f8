"""Where a result comes from: versions, machine, commit, command and times, as plain data."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("phinverse", "phiflow", "phiml", "numpy", "xarray", "netCDF4", "torch", "jax", "equinox", "optax")


@dataclass(frozen=True)
class Provenance:
    """What was installed, where it ran, and what was typed."""

    versions: dict[str, str]
    python: str
    platform: str
    host: str
    command: tuple[str, ...]
    git_commit: str | None
    """Commit of the working folder, with `+changes` if tracked files differ; None outside of git."""


def utc_now() -> str:
    """The present as ISO 8601 in UTC with microseconds, which sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Version of each package that is installed, from its metadata; nothing is imported."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """Commit checked out in a folder, `+changes` appended if tracked files differ; None if there is none."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    # `git diff --quiet` answers with its exit status, so None here means: there are changes.
    changed = _git(folder, "diff", "--quiet", "HEAD") is None
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command that takes no lock; None if git is missing, slow or says no."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def collect(command: Sequence[str], folder: Path | None = None) -> Provenance:
    """Provenance of a command run now; `folder` (default: the working folder) is asked for its git commit."""
    return Provenance(
        versions=installed_versions(),
        python=platform.python_version(),
        platform=platform.platform(),
        host=platform.node(),
        command=tuple(command),
        git_commit=git_commit(folder or Path.cwd()),
    )
