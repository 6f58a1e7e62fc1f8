"""Samplers that look at the time of the simulation draw forces per step, in scenarios and in `check_plugin`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from whole_runs import cli, execute, register, write_scenario

from toolkit import FieldSpec, Options, PDEPlugin, Sampler, Timing, option
from toolkit.core.errors import ScenarioError
from toolkit.scenario.load import scenario_from_text
from toolkit.testing import check_plugin

SCENARIO = """\
name: pushes
pde: pushed
time: {steps: 4, dt: 0.5}
data: {type: pushes, validation: 2, duration: 1.0}
run: {precision: float64}
output: {plots: false}
"""


class PushesOptions(Options):
    duration: float = option(0.05, gt=0, description="time during which it is pushed", units="time")


@dataclass(frozen=True)
class Pushed:
    """dx/dt = f."""

    def step(self, state: Any, inputs: Any, t: Any, dt: float) -> dict[str, Any]:
        push = inputs.force.get("x")
        return {"x": state["x"] if push is None else state["x"] + dt * push}


def _pushes(grid: Any, parameters: Any, options: PushesOptions, timing: Timing, rng: Any, count: int) -> Any:
    """A push of size 1 that ends after `duration`, from random places."""
    begins = timing.dt * np.arange(timing.steps)
    return {
        "initial.x": rng.random(count),
        "force.x": np.repeat(np.where(begins < options.duration, 1.0, 0.0)[None], count, axis=0),
    }


def _fits(grid: Any, parameters: Any, options: PushesOptions, timing: Timing) -> str | None:
    end = timing.steps * timing.dt
    return f"data.duration: longer than the simulation, {end:g}" if options.duration > end else None


PUSHED = PDEPlugin(
    name="pushed",
    summary="a place and what pushes it",
    equation="dx/dt = f",
    parameters=Options,
    fields=lambda parameters, grid: (FieldSpec("x", "place", on_grid=False),),
    build=lambda grid, parameters: Pushed(),
    dimensions=(),
    boundaries=frozenset(),
    forces=("x",),
    samplers={"pushes": Sampler("pushes that end", _pushes, PushesOptions, _fits, in_time=True)},
)
SLOPPY = PDEPlugin(
    **{
        **PUSHED.__dict__,
        "name": "sloppy",
        "samplers": {
            "pushes": Sampler("always three", lambda *a: {"initial.x": np.ones(a[-1]), "force.x": np.ones((a[-1], 3))})
        },
    }
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    register(monkeypatch, "pdes", pushed=f"{__name__}:PUSHED", sloppy=f"{__name__}:SLOPPY")


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_run_draws_for_its_own_time(tmp_path, name):
    run = execute(write_scenario(tmp_path, SCENARIO), tmp_path, {"run.backend": name})
    with run.stored:
        # Pushed in the steps that begin at 0 and 0.5, not in those of 1 and 1.5.
        moved = run.fields.x - run.fields.x.isel(t=0)
        np.testing.assert_allclose(moved.isel(sample=0), [0, 0.5, 1, 1, 1], rtol=0, atol=1e-15)


def test_a_sampler_may_object_to_the_time(tmp_path):
    path = write_scenario(tmp_path, SCENARIO, ("steps: 4", "steps: 1"))
    result = cli("validate", path)
    assert result.exit_code == 2
    assert f"{path}:4:47: data.duration: longer than the simulation, 0.5" in result.stderr


def test_the_force_of_a_sampler_needs_as_many_steps_as_the_simulation():
    with pytest.raises(ScenarioError, match=r"'pushes' gives force.x in the shape \(3,\), expected \(4,\)"):
        scenario_from_text(SCENARIO.replace("pde: pushed", "pde: sloppy").replace(", duration: 1.0", ""))


def test_the_contract_draws_for_the_time_of_its_check():
    check_plugin("pushed")
    with pytest.raises(AssertionError, match=r"sloppy: samples of force.x have the shape \(3,\), expected \(1,\)"):
        check_plugin("sloppy")
