"""Mistakes and misfortunes on the command line: one clear message, the right exit code, no trace, no debris."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys

import pytest
from whole_runs import DP, HEAT, WAVE, cli, files, status, write_scenario

BOMB = "description: &a [x, x, x, x, x, x, x, x, x]\nreferences:\n" + "".join(
    f"  - &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

BROKEN = {
    "an unknown key": (
        [("  optimizer:", "  optimiser:")],
        "heat.yaml:15:3: update.optimiser: unknown key; did you mean 'optimizer'?",
    ),
    "a wrong type": (
        [("steps: 4,", "steps: many,")],
        "heat.yaml:16:16: train.steps: expected an integer or arithmetic such as 2*pi/64, got 'many'",
    ),
    "a missing plugin": (
        [("type: heat", "type: haet")],
        "heat.yaml:5:13: pde.type: no PDE 'haet'; did you mean 'heat'?",
    ),
    "sip without an inverse solver": (
        [("  inverse_solver: damped_spectral\n", "")],
        "heat.yaml:12:1: update.inverse_solver: update rule 'sip' needs an inverse_solver; for PDE 'heat': ",
    ),
    "lbfgs on a rule that descends no function": (
        [("{type: adam, learning_rate: 1e-3}", "lbfgs")],
        "heat.yaml:15:14: update.optimizer.type: lbfgs searches along a line for the minimum of a function",
    ),
    "negative cells": (
        [("cells: {x: 8", "cells: {x: -8")],
        "heat.yaml:4:19: grid.cells.x: expected a number > 0, got -8",
    ),
    "a duplicate key": (
        [("loss: l2", "loss: l2\nloss: l1")],
        "heat.yaml:12:1: loss: duplicate key; the first one is in line 11",
    ),
    "an alias bomb": (
        [("description: A small inverse problem of the heat equation.\nreferences: [a paper]\n", BOMB)],
        "aliases expand to more than 10000 values; write the values out or use fewer",
    ),
    "an object of Python": (
        [("diffusivity: 8.0", "diffusivity: !!python/object/apply:os.getcwd []")],
        "heat.yaml:5:32: pde.diffusivity: tag '!!python/object/apply:os.getcwd' is not allowed; a scenario is",
    ),
    "an expression that is no arithmetic": (
        [("diffusivity: 8.0", "diffusivity: \"__import__('os').getcwd()\"")],
        "heat.yaml:5:32: pde.diffusivity: expected a number or arithmetic such as 2*pi/64, got",
    ),
    "a name that is not the file's": (
        [("name: heat\n", "name: wave\n")],
        "heat.yaml:1:7: name: expected 'heat', the name of the file, got 'wave'; rename one of them",
    ),
    "an inverse that single precision cannot hold": (
        [("precision: float64", "precision: {physics: float32}")],
        "heat.yaml:17:57: run.precision.physics: inverse solver 'damped_spectral' needs float64",
    ),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_scenario_is_told_where_and_what(here, case, command):
    changes, expected = BROKEN[case]
    write_scenario(here, HEAT, *changes).rename(here / "heat.yaml")
    before = (here / "heat.yaml").read_bytes()

    result = cli(command, "heat.yaml")

    assert result.exit_code == 2
    assert expected in result.stderr
    assert re.match(r"heat\.yaml:\d+:\d+: [a-z_]+(\.\w+)*: ", result.stderr)
    assert result.stdout == ""
    assert list(here.iterdir()) == [here / "heat.yaml"]
    assert (here / "heat.yaml").read_bytes() == before


def test_all_mistakes_of_all_files_are_told_at_once(here):
    one = write_scenario(here, HEAT, ("layers", "layer"), ("validation", "validatoin"))
    two = write_scenario(here, WAVE, ("dt: 0.5", "dt: soon"))
    result = cli("validate", one, two)
    assert result.exit_code == 2
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == [
        f"{one}:8:30",
        f"{one}:10:31",
        f"{two}:5:22",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "heat_spi"), "heat_spi: no such scenario file; did you mean 'heat_sip'?"),
        (("run", "scenarios/heat_spi.yaml"), "did you mean 'heat_sip'?"),
        (("run", "."), "expected a scenario file, this is a folder"),
        (("run", "heat.yaml", "--set", "train.stpes=3"), "--set train.stpes: unknown key; did you mean 'steps'?"),
        (("run", "heat.yaml", "--set", "train.steps"), "expected key=value"),
        (("run", "heat.yaml", "--steps", "-1"), "train.steps: expected a number > 0, got -1"),
        (("run", "heat.yaml", "--backend", "numpy"), "run.backend: expected 'torch' or 'jax', got 'numpy'"),
        (("run", "heat.yaml", "--device", "tpu"), "run.device"),
        (("run", "heat.yaml", "--precision", "float32"), "inverse solver 'damped_spectral' needs float64"),
        (("run", "heat.yaml", "--bogus"), "No such option: --bogus"),
        (("run",), "Missing argument"),
        (("rum", "heat.yaml"), "No such command 'rum'"),
        (("resume", "nowhere"), "no run 'nowhere' in runs; `phinverse list runs` shows what there is"),
        (("resume", "last"), "no run in runs yet; start one with `phinverse run SCENARIO`"),
        (("plot", "."), "holds no run.json"),
        (("list", "solver"), "did you mean 'solvers'?"),
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(here, arguments, expected):
    write_scenario(here, HEAT)
    result = cli(*arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stdout == ""
    assert list(here.iterdir()) == [here / "heat.yaml"]


def test_a_run_that_diverges_ends_with_1_and_says_what_to_change(here):
    path = write_scenario(here, HEAT, DP, ("adam, learning_rate: 1e-3", "sgd, learning_rate: 1e30"))
    result = cli("run", path, "--name", "a", "--set", "run.precision={network: float32}", "--steps", 50)
    assert result.exit_code == 1
    record = status(here / "runs" / "heat" / "a")
    assert record["status"] == "failed"
    assert record["details"]["exit_code"] == 1
    for key in ("update.optimizer.learning_rate", "update.clip", "run.precision"):
        assert key in record["reason"]
    assert record["reason"].startswith("step ")
    assert record["reason"] in result.stderr
    # What was measured until then is kept.
    assert {"metrics.nc", "metrics.jsonl", "checkpoint/state.json"} <= files(here / "runs" / "heat" / "a")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_device_that_is_not_there_ends_with_4_and_leaves_the_name_free(here, backend):
    path = write_scenario(here, WAVE)
    result = cli("run", path, "--name", "a", "--backend", backend, "--device", "gpu:7")
    assert result.exit_code == 4
    assert f"run.device: no device 'gpu:7' on {backend}; present: cpu" in result.stderr
    assert list(here.iterdir()) == [path]
    assert cli("run", path, "--name", "a", "--device", "cpu").exit_code == 0


def test_a_backend_that_is_not_installed_ends_with_4(here, monkeypatch):
    from toolkit.core import backend

    def missing(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(backend.importlib, "import_module", missing)
    path = write_scenario(here, WAVE)
    result = cli("run", path)
    assert result.exit_code == 4
    assert "pip install torch" in result.stderr
    assert list(here.iterdir()) == [path]
    result = cli("devices")
    assert result.exit_code == 4
    assert "pip install jax" in result.stderr


# --- files that cannot be written ---------------------------------------------------------------------------------


def test_a_folder_below_a_file_is_no_place_for_runs(here):
    path = write_scenario(here, WAVE)
    result = cli("run", path, "--out", path / "runs")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"cannot create {path / 'runs' / 'wave'}: a part of the path is a file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_named(here):
    path = write_scenario(here, WAVE)
    (here / "out").mkdir(mode=0o500)
    result = cli("run", path, "--out", here / "out")
    assert result.exit_code == 1
    assert "permission denied; choose a folder you may write to with --out" in result.stderr


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_file_system_that_is_read_only_is_named(here, monkeypatch, code):
    from pathlib import Path

    def refuse(self, *given, **named):
        raise OSError(code, os.strerror(code), str(self))

    path = write_scenario(here, WAVE)
    monkeypatch.setattr(Path, "mkdir", refuse)
    result = cli("run", path, "--out", "out")
    assert result.exit_code == 1
    assert "cannot create out/wave: " in result.stderr
    assert "with --out" in result.stderr


@pytest.mark.parametrize("scenario", [HEAT, WAVE], ids=["training", "simulation"])
@pytest.mark.parametrize("writes", [0, 2, 5, 8])
def test_a_disk_that_fills_up_ends_the_run_with_what_to_do(here, monkeypatch, scenario, writes):
    fsync, done = os.fsync, []

    def full(handle):
        done.append(handle)
        if len(done) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(handle)

    path = write_scenario(here, scenario)
    monkeypatch.setattr(os, "fsync", full)
    result = cli("run", path, "--out", "out")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("cannot write out/")
    assert lines[-1].endswith("the disk is full; free some space or choose another folder with --out")
    assert not [name for name in files(here) if ".part" in name]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
import typer_cli
typer_cli.app()
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_a_stream_that_cannot_grow_ends_the_run_and_the_record_says_why(here):
    path = write_scenario(here, WAVE, ("steps: 6", "steps: 60"))
    arguments = [sys.executable, "-c", LIMITED, "run", path.name, "--name", "a"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    record = json.loads((here / "runs" / "wave" / "a" / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["reason"] == done.stderr.splitlines()[-1]
    assert record["reason"].startswith("cannot write runs/wave/a/fields.nc: ")
    assert "is there space on the disk?" in record["reason"]
