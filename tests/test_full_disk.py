"""A full disk: a clear message, exit code 1, what was there before is intact, and `resume` goes on once there is space.

The disk is a small tmpfs, mounted in a name space of its own by a process of its own; that this file is a program, too,
is for its sake.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from batch_cases import assert_same_results
from whole_runs import DIRECT, WAVE, cli, execute, status, write_scenario

import toolkit
from toolkit.runs.metrics import read_metrics

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
LARGER = ("cells: {x: 8, y: 8}", "cells: {x: 32, y: 32}")
KILOBYTES = 1000
"""Room for about half of the frames."""


def may_mount() -> bool:
    """Whether a user may have a name space here."""
    if shutil.which(NAMESPACE[0]) is None:
        return False
    done = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="no name space with a mount of its own for a user here")
def test_a_full_disk_costs_nothing_that_was_there(tmp_path):
    command = [*NAMESPACE, sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["wave", "direct"]


def fill_and_go_on(folder: Path, path: Path) -> None:
    """Run a scenario on a disk that is too small for it, look at what is left, and go on with more space."""
    disk = folder / f"disk-{path.stem}"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={KILOBYTES}k", "tmpfs", str(disk))
    before = execute(path, disk, {"time.steps" if path.stem == "wave" else "train.steps": 5}, "before")
    before.stored.close()
    result = cli("run", path, "--out", disk, "--name", "it")
    assert result.exit_code == 1, result.stderr
    assert "the disk is full; free some space" in result.stderr.splitlines()[-1]
    run = disk / path.stem / "it"
    assert status(run)["status"] == "failed"
    assert "the disk is full" in status(run)["reason"]
    assert status(before.path)["status"] == "done"
    for each in (run, before.path):
        with toolkit.open_run(each) as stored:
            fields = stored.fields.load()
            assert 2 <= fields.sizes.get("t", fields.sizes.get("step")) < 120
            assert bool(fields.temperature.notnull().all())
        assert read_metrics(each / "metrics.jsonl")
    mount("-o", "remount,size=20m", str(disk))
    assert cli("resume", run).exit_code == 0
    assert status(run)["status"] == "done"
    whole = execute(path, folder / "whole")
    whole.stored.close()
    assert_same_results(whole.path, run)


def mount(*arguments: str) -> None:
    """The command of the system."""
    subprocess.run(["mount", *arguments], check=True)


def main(folder: Path) -> None:
    """What runs in the name space."""
    for text, steps in ((WAVE, ("steps: 6", "steps: 120")), (DIRECT, ("steps: 4", "steps: 60"))):
        path = write_scenario(folder, text, LARGER, steps)
        fill_and_go_on(folder, path)
        print(path.stem)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
