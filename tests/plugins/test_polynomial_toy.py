"""The polynomial toy: published losses and update vectors of three gradient flows, and their curl."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from closed_loops import FLOWS, direction
from numeric_cases import case_of, updated

from toolkit.core.errors import ScenarioError
from toolkit.scenario.load import load_scenario, scenario_from_text

SCENARIO = Path(__file__).parents[2] / "scenarios" / "polynomial_toy.yaml"
PUBLISHED = {
    (0, 0): (2.645, {"G": (-0.828, 2.76), "M": (-0.828, 2.76), "S": (-0.207, 0.69)}),
    (1, 1): (
        4.490035643,
        {
            "G": (-2.9184287185, 3.2198662371),
            "M": (-5.4406921604, 7.5284070204),
            "S": (-2.6611306443, 2.8239242582),
        },
    ),
    (-1, 2): (
        351172.5956,
        {
            "G": (-2144416.2018, 1528700.1912),
            "M": (-645619.0802, 27399.2861),
            "S": (-631645.7727, 23007.7659),
        },
    ),
    (3, -3): (
        1.017413853,
        {"G": (7.0912085427, 2.2711492769), "M": (-1.6766814484, -1.2613273822), "S": (-0.0668450738, 0.3087924079)},
    ),
}
"""θ: (L, update vectors), computed by an independent implementation to the digits given."""


@pytest.fixture
def case(backend):
    return case_of(load_scenario(SCENARIO).sections, backend)


@pytest.mark.parametrize("flow", FLOWS)
def test_losses_and_update_vectors_are_the_published_ones(case, flow):
    at = direction(case, FLOWS[flow])
    for theta, (loss, vectors) in PUBLISHED.items():
        value, found = at(theta)
        # Half a unit of the last digit printed, nine digits at least.
        assert value == pytest.approx(loss, rel=5e-10), theta
        assert found == pytest.approx(vectors[flow], rel=2.5e-9), theta


def test_only_the_gradient_has_no_curl(case):
    """∂V₂/∂θ₁ − ∂V₁/∂θ₂ up to sign, at (1, 1)."""
    h, curl = 1e-5, {}
    for name, flow in FLOWS.items():
        at = direction(case, flow)
        along = [(at(np.ones(2) + h * e)[1] - at(np.ones(2) - h * e)[1]) / (2 * h) for e in np.eye(2)]
        curl[name] = along[0][1] - along[1][0]
    # Central differences: h² of third derivatives, some 1e3, and rounding over h.
    assert curl["G"] == pytest.approx(0, abs=1e-6)
    assert [curl["M"], curl["S"]] == pytest.approx([7.010, 4.277], abs=6e-4)


def test_the_shipped_scenario_starts_at_one_and_votes(case):
    """At (1, 1) all signs agree: combined is the physics flow."""
    found = updated(case)
    loss, vectors = PUBLISHED[1, 1]
    assert float(found["loss"][""]) == pytest.approx(loss, rel=5e-10)
    assert found["direction"]["controller/out.weight"].ravel() == pytest.approx(vectors["M"], rel=3e-10)


def test_where_no_sign_agrees_the_vote_stalls(backend):
    """G and M differ in both signs at (3, −3), far from any minimum."""
    sections = load_scenario(SCENARIO, {"networks.controller.weight": [[3.0, -3.0]]}).sections
    found = updated(case_of(sections, backend))
    assert float(found["loss"][""]) > 1
    assert not np.any(found["direction"]["controller/out.weight"])


def test_powers_that_do_not_belong_to_the_start_are_refused():
    path_free = SCENARIO.read_text(encoding="utf-8")
    check = load_scenario(SCENARIO).sections.pde.plugin.check_sample
    assert check(None, None, {"initial.position": np.array(-0.3), "initial.powers": np.array([0.09, -0.3])}) is None
    message = check(None, None, {"initial.position": np.array(-0.3), "initial.powers": np.array([0.09, 0.3])})
    assert message == "initial.powers: expected x² and x of initial.position, [0.09, -0.3], got [0.09, 0.3]"
    assert "got [0.0, 0.0]" in (check(None, None, {"initial.position": np.array(2.0)}) or "")
    with pytest.raises(ScenarioError, match=r"weight needs 1 rows \(values given\) of 2 numbers \(values seen\)"):
        scenario_from_text(path_free, {"networks.controller.weight": [[1.0, 2.0, 3.0]]})
