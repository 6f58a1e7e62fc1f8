"""A solve inside a step that stops before it has converged fails the run, with the key to change, on both backends."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from iterative_pde import LIMIT, PLUGIN, ImplicitParameters
from phiml import math
from phiml.math import batch, spatial
from whole_runs import BACKENDS, cli, execute, register, status, write_scenario

import toolkit
from toolkit import Grid, relative_residual
from toolkit.core.errors import DivergenceError
from toolkit.testing import check_plugin

SIMULATION = """\
name: solves
grid: {cells: {x: 32}, extent: {x: 4}}
pde: implicit
time: {steps: 3}
data: {type: noise, validation: 2}
run: {precision: float64}
output: {plots: false}
"""
LEARNING = (
    SIMULATION.replace("steps: 3", "steps: 2")
    + """\
controls: {start: {acts_on: initial.u, initial: 0.0}}
loss: {type: l2, on: final.u}
update: {type: dp, optimizer: {type: sgd, learning_rate: 1.0}}
train: {steps: 3, validate_every: 1}
"""
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    names = {"implicit": "PLUGIN", "unmonitored": "UNMONITORED", "traced": "TRACED"}
    register(monkeypatch, "pdes", **{name: f"iterative_pde:{value}" for name, value in names.items()})


def test_the_pattern_keeps_the_contract():
    check_plugin("implicit")


def test_a_step_that_cannot_be_traced_breaks_the_contract():
    with pytest.raises(AssertionError, match=r"traced on torch: .* cannot be traced .* `traceable=False`"):
        check_plugin("traced")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_simulation_whose_solve_stops_early_fails_with_the_key_to_change(tmp_path, name):
    path = write_scenario(tmp_path, SIMULATION)
    arguments = ("--set", f"run.backend={name}", "--out", tmp_path, "--name", "it")
    result = cli("run", path, "--set", "pde.iterations=3", *arguments)
    assert result.exit_code == 1
    found = status(tmp_path / "solves" / "it")
    assert found["status"] == "failed"
    assert found["reason"].startswith("time step 1: largest relative residual of the solve is ")
    assert found["reason"].endswith("the limit is 1e-07; change pde.iterations")
    assert found["reason"] in result.stderr


@pytest.mark.parametrize("name", BACKENDS)
def test_with_enough_iterations_it_runs(tmp_path, name):
    run = execute(write_scenario(tmp_path, SIMULATION), tmp_path, {"run.backend": name})
    with run.stored:
        assert float(run.metrics.residual.max()) == 0
        # The highest wave of the cosine that the noise holds, k² = 4 / dx², is divided by 1 + 4 dt / dx² per step.
        u = np.fft.rfft(run.fields.u.values)[..., -1].real
        np.testing.assert_allclose(u[:, -1], u[:, 0] / (1 + 4 / 0.125**2) ** 3, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
def test_training_fails_in_the_validation_that_sees_it(tmp_path, name):
    path = write_scenario(tmp_path, LEARNING)
    execute(path, tmp_path, {"run.backend": name}, name="good").stored.close()
    with pytest.raises(DivergenceError, match=r"validation after step 1: .* change pde\.iterations|linear solve"):
        execute(path, tmp_path, {"run.backend": name, "pde.iterations": 3}, name="bad")


def test_a_solve_without_a_monitor_still_fails_the_run_where_it_raises(tmp_path):
    path = write_scenario(tmp_path, SIMULATION)
    with pytest.raises(DivergenceError, match=r"a linear solve of pde unmonitored failed: .* did not converge"):
        execute(path, tmp_path, {"run.backend": "torch", "pde": {"type": "unmonitored", "iterations": 3}})


def test_the_pattern_of_the_documentation_is_the_step_tested_here():
    page = (Path(toolkit.__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def implicit_diff" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    grid = Grid({"x": 16}, {"x": 4.0})
    with math.precision(64):
        u = math.tensor(np.random.default_rng(0).standard_normal((2, 16)), batch("sample"), spatial("x"))
        state = {"u": u, "residual": math.zeros(batch(sample=2))}
        for iterations in (100, 2):
            found = names["implicit_diffusion"](grid, state, 0.5, iterations)
            expected = PLUGIN.build(grid, ImplicitParameters(iterations=iterations)).step(state, None, 0.0, 0.5)
            math.assert_close(found["u"], expected["u"], rel_tolerance=1e-14)
            math.assert_close(found["residual"], expected["residual"], rel_tolerance=1e-14)
            assert np.all((found["residual"].numpy("sample") > LIMIT) == (iterations == 2))


def test_the_relative_residual_is_per_sample_and_of_any_size():
    def tensor(rows):
        return math.tensor(rows, batch("sample"), spatial("x"))

    with math.precision(64):
        left = tensor([[3.0, 4.0], [1e-200, 0.0], [0.0, 0.0], [1e200, 2e200]])
        right = tensor([[0.0, 4.0], [2e-200, 0.0], [0.0, 0.0], [1e200, 1e200]])
        found = relative_residual(left, right).numpy("sample")
    np.testing.assert_allclose(found, [0.75, 0.5, 0, np.sqrt(0.5)], rtol=1e-14)
