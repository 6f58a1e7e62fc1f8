"""`phinverse diagnose` as people use it: tables, JSON, files, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from whole_runs import HEAT, WAVE, cli, files, write_scenario

from toolkit.runs.datasets import open_dataset

STEER = """\
name: steer
description: Two oscillators are steered.
references: [a paper]
pde: {type: oscillators, number: 2, linear_coupling: 0.2, cubic_coupling: 0.0}
time: {steps: 3, dt: 0.5}
controls:
  drive: {acts_on: force.drive}
data: {type: uniform, range: [0, 1], validation: 4}
networks:
  controller: {type: mlp, layers: [5], activation: tanh, input: target, output: drive}
loss: {type: l2, on: final.state}
update:
  type: dp
  optimizer: {type: adam, learning_rate: 1e-3}
train: {steps: 4, batch_size: 4}
run: {backend: torch, device: cpu, precision: float64}
"""
SWEEP = ("loss: l2", "loss: l2\nsweep: {run.seed: [3, 4]}")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_names_spectra_rules_and_the_next_command(here):
    result = cli("diagnose", write_scenario(here, HEAT).name)
    assert result.exit_code == 0
    for text in (
        "network ∂x/∂θ  128 x 34",
        "physics ∂y/∂x  64 x 64",
        "2 of 2",
        "sip with damped_spectral",
        "supervised",
    ):
        assert text in result.stdout
    run = here / result.stdout.splitlines()[-1]
    assert run.parent == here / "runs" / "heat"
    assert run.name.startswith("diagnose-")
    assert files(run) == {"scenario.yaml", "diagnosis.json", "diagnosis.nc", "plots/spectrum.png"}
    lines = result.stderr.splitlines()
    assert lines[0].startswith("phinverse 0.")
    assert "singular values in float64" in lines[0]
    assert lines[-1].startswith("next: phinverse run heat.yaml")
    assert cli("list", "runs").stdout.count("diagnose-") == 0


def test_json_has_all_numbers_and_the_dataset_is_valid(here):
    result = cli("diagnose", write_scenario(here, STEER), "--json", "--out", here / "out")
    assert result.exit_code == 0
    about = json.loads(result.stdout)
    assert (about["scenario"], about["cell"], about["batch"]) == ("steer", None, 4)
    assert about["sizes"] == {"controls": 3, "outputs": 4, "parameters": 43, "loop": False}
    shapes = {part: (s["rows"], s["columns"], s["samples"]) for part, s in about["spectra"].items()}
    assert shapes == {"network": (12, 43, 4), "physics": (4, 3, 4), "total": (16, 43, 4)}
    assert set(about["spectra"]["total"]) >= {"rank", "condition", "typical", "decades", "values"}
    assert len(about["steps"]["state"]) == 4
    assert len(about["steps"]["control"]) == 3
    assert about["saturation"] == [{"network": "controller", "layer": "activation0", "kind": "tanh", "share": 0.0}]
    rules = {(r["rule"], r["solver"]): r for r in about["rules"]}
    assert rules["dp", None]["cost"]["ratio"] == 1.0
    assert rules["dp", None]["cost"]["seconds"] > 0
    assert rules["hig", None]["cost"]["reason"] == "timed"
    assert {"rule", "solver", "cost", "grade", "reason"} == set(rules["sip", "newton"])
    # The one needs a network in the loop, the other true controls.
    assert [r["rule"] for r in about["refused"]] == ["stable_bptt", "supervised"]
    run = Path(about["path"])
    assert json.loads((run / "diagnosis.json").read_text(encoding="utf-8")) == about
    with open_dataset(run / "diagnosis.nc") as dataset:
        assert dataset["physics_singular_value"].dims == ("sample", "physics_mode")
        assert dataset["state_gradient"].sizes == {"t": 4}
        assert dataset["rule"].values.tolist() == [_name(rule) for rule in about["rules"]]
    checker = Path(sys.executable).with_name("compliance-checker")
    done = subprocess.run(
        [checker, "--test=cf:1.11", run / "diagnosis.nc"], capture_output=True, text=True, check=False
    )
    assert "All tests passed!" in done.stdout, done.stdout


def _name(rule):
    return rule["rule"] if rule["solver"] is None else f"{rule['rule']} with {rule['solver']}"


def test_a_sweep_is_diagnosed_by_its_first_cell(here):
    result = cli("diagnose", write_scenario(here, HEAT, SWEEP), "--samples", 1)
    assert result.exit_code == 0
    assert "its first cell is diagnosed, seed=3-" in result.stderr
    assert "sweep cell seed=3-" in result.stdout
    assert "1 of 2" in result.stdout


def test_short_options_and_set_change_the_scenario(here):
    path = write_scenario(here, STEER)
    result = cli("diagnose", path, "--set", "time.steps=1", "--seed", 7, "--precision", "float32", "--json")
    about = json.loads(result.stdout)
    assert about["steps"] is None
    assert "seed: 7" in (here / about["path"] / "scenario.yaml").read_text(encoding="utf-8")


def test_what_cannot_be_diagnosed_leaves_nothing(here):
    path = write_scenario(here, HEAT)
    for arguments, words in (
        ([path, "--samples", 0], "--samples: expected 1 or more"),
        ([path, "--set", "update.type=nothing"], "update.type"),
        ([write_scenario(here, WAVE)], "nothing is learned"),
        (["no_such_scenario"], "no such scenario file"),
    ):
        result = cli("diagnose", *arguments)
        assert result.exit_code == 2
        assert words in result.stderr
    assert cli("diagnose", path, "--device", "gpu:7").exit_code == 4
    assert not (here / "runs").exists()
