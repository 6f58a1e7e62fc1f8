"""Gates on the gradient of a linear scalar loop against their closed forms.

x' = a x + b c,  c = θ x,  q = a + b θ,  r = x_n − y,  L = ½ r²:
G = r b n x₀ q^{n−1},   M = r b x₀ (qⁿ − aⁿ) / (q − a),   S = r b x₀ q^{n−1}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from closed_loops import FLOWS, direction
from numeric_cases import built
from whole_runs import register

from toolkit import FieldSpec, Options, PDEPlugin, Sampler, option


class ScalarParameters(Options):
    a: float = option(0.9, description="factor of x")
    b: float = option(0.5, description="factor of the control")


@dataclass(frozen=True)
class Scalar:
    """x' = a x + b c."""

    parameters: ScalarParameters

    def step(self, state: Any, inputs: Any, t: Any, dt: float) -> dict[str, Any]:
        return {"x": self.parameters.a * state["x"] + self.parameters.b * inputs.force.get("c", 0.0)}


PLUGIN = PDEPlugin(
    name="scalar",
    summary="linear scalar system",
    equation="x' = a x + b c",
    parameters=ScalarParameters,
    fields=lambda parameters, grid: (FieldSpec("x", "x", on_grid=False),),
    build=lambda grid, parameters: Scalar(parameters),
    dimensions=(),
    boundaries=frozenset(),
    forces=("c",),
    actions=lambda parameters, grid: (FieldSpec("c", "control", on_grid=False),),
    samplers={
        "point": Sampler("1 and 2", lambda g, p, o, rng, n: {"initial.x": np.ones(n), "target.x": np.full(n, 2.0)})
    },
)
TEXT = """
name: case
pde: scalar
time: {steps: 10}
controls: {c: {acts_on: force.c}}
data: {type: point, train: 1, validation: 1}
networks: {f: {type: linear, weight: [[0.3]], output: c, every_step: true}}
loss: {type: l2, on: final.x}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 1}
run: {precision: float64}
"""
REFERENCE = {"G": -2.878531183, "M": -1.583650353, "S": -0.2878531183}
"""At a = 0.9, b = 0.5, θ = 0.3, x₀ = 1, y = 2, n = 10."""


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    register(monkeypatch, "pdes", scalar=f"{__name__}:PLUGIN")


@pytest.mark.parametrize("flow", FLOWS)
def test_directions_of_a_linear_loop_are_the_closed_forms(backend, flow):
    case, n = built(TEXT, backend), 10
    at = direction(case, FLOWS[flow])
    for theta in (0.3, -1.0, 0.0, 1.5):
        a, b = 0.9, 0.5
        q = a + b * theta
        r = q**n - 2
        slopes = sum(q**i * a ** (n - 1 - i) for i in range(n))
        expected = {"G": n * q ** (n - 1), "M": slopes, "S": q ** (n - 1)}
        value, found = at(theta)
        # Ten products each.
        assert value == pytest.approx(0.5 * r**2, rel=1e-13)
        assert found == pytest.approx([r * b * expected[flow]], rel=1e-13)
    # Ten digits are known.
    assert at(0.3)[1] == pytest.approx([REFERENCE[flow]], rel=5e-10)
