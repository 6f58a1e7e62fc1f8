"""Numbers that nobody can compute with are refused before the run: place, key, expectation, exit code 2, no trace."""

from __future__ import annotations

import re

import pytest
from whole_runs import cli, files, register, write_scenario

from toolkit import Options, PDEPlugin, Sampler
from toolkit.core.errors import ScenarioError
from toolkit.scenario.load import scenario_from_text

BURGERS = """\
name: case
grid: {cells: {x: 16}, extent: {x: 4}}
pde: {type: burgers, viscosity: 0.01}
time: {steps: 2, dt: 0.1}
data: {type: sine, validation: 1}
"""
HEAT = """\
name: case
grid: {cells: {x: 16, y: 16}, extent: {x: 40, y: 40}}
pde: {type: heat, diffusivity: 1.0}
time: {steps: 2, dt: 0.1}
data: {type: hot_rectangles, validation: 1}
"""
POISSON = """\
name: case
grid: {cells: {x: 16, y: 16}}
pde: poisson
time: {dt: 1.0}
data: {type: smooth_noise, validation: 1}
"""
PACKET = """\
name: case
grid: {cells: {x: 64}}
pde: {type: wave_packet, omega: 0.5, width: 6.0}
time: {dt: 1.0}
data: {type: arrivals, validation: 1}
"""
NEVER = "evolved_sine, viscosity: 0.01, duration: 0.5, steps: 1000000000"

CASES = [
    # sizes
    (BURGERS, ("x: 16", "x: 1000000000000"), "2:15: grid.cells: one sample has 1e+12 values, computing with it takes"),
    (HEAT, ("x: 16, y: 16", "x: 1e9, y: 1e9"), "2:15: grid.cells: one sample has 1e+18 values"),
    (HEAT, ("x: 16, y: 16", "x: 1e308, y: 1e308"), "2:15: grid.cells: one sample has 1e+300 values"),
    (POISSON, ("x: 16, y: 16", "x: 20000, y: 1"), "grid.cells: largest number of cells along an axis is 2e+04"),
    (BURGERS, ("steps: 2", "steps: 1e300"), "4:15: time.steps: expected at most 2147483647, got 1000"),
    (BURGERS, ("validation: 1", "validation: 1e12"), "5:32: data.validation: expected at most 2147483647"),
    (BURGERS, ("validation: 1", "train: 1e12, validation: 1"), "5:27: data.train: expected at most 2147483647"),
    (BURGERS, ("validation: 1}", "validation: 1}\ntrain: {batch_size: 1e10}"), "6:21: train.batch_size: expected at"),
    (BURGERS, ("sine", NEVER), "5:67: data.steps: expected a number ≤ 10000, got 1000000000"),
    (HEAT, ("validation: 1", "validation: 1, boxes: [0, 1000000]"), "data.boxes: at most 10000 boxes"),
    # steps that cannot be stable, grids without room
    (BURGERS, ("viscosity: 0.01", "viscosity: 1e300"), "time.dt: diffusion number is 1.6e+300, its limit is 0.5"),
    (BURGERS, ("dt: 0.1", "dt: 1e300"), "4:22: time.dt: CFL number is 8e+300, its limit is 2"),
    (BURGERS, ("dt: 0.1", "dt: 0"), "4:22: time.dt: expected a number > 0, got 0"),
    (BURGERS, ("steps: 2", "steps: 0"), "4:15: time.steps: expected a number > 0, got 0"),
    (BURGERS, ("x: 16", "x: 1"), "data.waves: 1 waves need more than 2 cells, not 1"),
    (PACKET, ("x: 64", "x: 0"), "2:19: grid.cells.x: expected a number > 0, got 0"),
    (PACKET, ("omega: 0.5", "omega: 4.0"), "omega dx / pi (Nyquist) is 1.273, its limit is 1"),
    # starts beyond what the scenario says of them
    (BURGERS, ("sine,", "sine, amplitude: 3,"), "initial.velocity: |u| reaches 2.942, more than pde.max_velocity 2"),
    (BURGERS, ("viscosity: 0.01", "viscosity: 0.01, max_slope: 1"), "|∂u/∂x| reaches 3.003, more than pde.max_slope 1"),
    # arithmetic
    (HEAT, ("extent: {x: 40", "extent: {x: 1e300"), "3:1: pde: stability of PDE 'heat': cannot be computed (Overflow"),
    (
        HEAT,
        ("validation: 1", "validation: 1, strength: [-1e308, 1e308]"),
        "5:1: data: sampler 'hot_rectangles': cannot",
    ),
    (POISSON, ("validation: 1", "validation: 1, smoothness: 1e3"), "values of initial.source that are not finite"),
    (PACKET, ("validation: 1", "validation: 1, noise: 1e308"), "values of target.signal that are not finite"),
    (PACKET, ("omega: 0.5", "omega: .nan"), "3:33: pde.omega: expected a finite number, got nan"),
]


@pytest.mark.parametrize(("text", "change", "words"), CASES)
def test_a_scenario_is_refused(tmp_path, text, change, words):
    path = write_scenario(tmp_path, text, change)
    result = cli("validate", path)
    assert result.exit_code == 2
    assert words in result.stderr
    assert re.search(rf"{re.escape(str(path))}:\d+:\d+: \w", result.stderr)
    assert files(tmp_path) == {"case.yaml"}


@pytest.mark.parametrize("text", [BURGERS, HEAT, POISSON, PACKET])
def test_what_the_cases_change_is_fine(text):
    scenario_from_text(text)


def _raises(error: Exception):
    def sample(*args):
        raise error

    return Sampler("fails", sample)


GREEDY = PDEPlugin(
    name="greedy",
    summary="needs memory",
    equation="none",
    parameters=Options,
    fields=lambda parameters, grid: (),
    build=lambda grid, parameters: None,  # type: ignore[arg-type, return-value]
    dimensions=(),
    samplers={"all": _raises(MemoryError()), "bug": _raises(TypeError("a bug"))},
)


def test_memory_that_is_not_there_is_a_finding_and_a_bug_is_not(monkeypatch):
    register(monkeypatch, "pdes", greedy=f"{__name__}:GREEDY")
    with pytest.raises(ScenarioError, match="data: sampler 'all': not enough memory; use fewer cells"):
        scenario_from_text("name: a\npde: greedy\ndata: {type: all}")
    with pytest.raises(TypeError, match="a bug"):
        scenario_from_text("name: a\npde: greedy\ndata: {type: bug}")
