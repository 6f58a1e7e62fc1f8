"""What an update costs by the counts, and which rules are recommended for which numbers."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.training.advice import Candidate, Findings, judge, remarks
from toolkit.training.diagnosis import StepGradients
from toolkit.training.spectra import Sizes, Spectra, Spectrum
from toolkit.training.update_cost import Cost, Setting, count_cost, multiplications_per_second


def test_counts_follow_what_is_solved():
    class Options:
        max_iterations = 7
        exponent, truncation, truncation_mode, algorithm, memory = -0.5, 1e-6, "relative", "auto", 4.0

    setting = Setting(Sizes(10, 4, 1000, False), samples=16, unit=1e-3, rate=1e9)
    ratios = {
        solver: count_cost("sip", solver, Options(), setting).ratio
        for solver in ("newton", "gauss_newton", "lbfgs", "gradient", "something")
    }
    assert ratios == {"newton": 11, "gauss_newton": 8, "lbfgs": 8, "gradient": 1, "something": 1}
    work = 64**2 * 1000 + 3 * 64**3
    assert count_cost("hig", None, Options(), setting).ratio == pytest.approx(5 + work / 1e9 / 1e-3)
    assert count_cost("unheard_of", None, Options(), setting) is None
    assert multiplications_per_second(64) > 1e6


def candidate(rule, solver=None, special=False, refused=None, ratio=1.0, own=False):
    return Candidate(rule, solver, special, refused, Cost(ratio, ""), own)


ALL = (
    candidate("supervised"),
    candidate("dp"),
    candidate("sip", "exact", special=True),
    candidate("sip", "newton", ratio=3),
    candidate("sip", "gradient"),
    candidate("hig", ratio=100.0),
    candidate("gauss_newton", ratio=100.0),
)


def findings(condition, typical, network=10.0, controls=2, rank=2, steps=None):
    physics = Spectrum(np.array([[condition, 1.0, *[0.0] * (controls - 2)]])[:, :controls], 2, controls)
    if rank == 1:
        physics = Spectrum(np.array([[1.0, 0.0]]), 2, controls)
    total = Spectrum(np.array([1.0, 1 / typical, 0.5 / typical]), 3, 9)
    own = Spectrum(np.array([1.0, 1 / network, 0.5 / network]), 3, 9)
    return Findings(Sizes(controls, 2, 9, False), Spectra(own, physics, total), steps, ())


def best(found, candidates=ALL):
    verdicts = judge(found, candidates)
    return verdicts[0].candidate.name, {v.candidate.name: v.grade for v in verdicts}


def test_a_harmless_problem_is_left_to_dp():
    name, grades = best(findings(2.0, 200.0))
    assert name == "dp"
    assert grades["sip with exact"] == "possible"
    assert grades["sip with gradient"] == "poor"


def test_badly_conditioned_physics_are_inverted():
    name, grades = best(findings(1e3, 1e4))
    assert name == "sip with exact"
    assert grades["dp"] == "poor"
    assert grades["sip with newton"] == "suits"
    assert best(findings(1.0, 1e12, rank=1))[0] == "sip with exact"


def test_a_conserved_quantity_is_no_loss():
    physics = Spectrum(np.array([[*np.linspace(2.0, 1.0, 9), 0.0]]), 10, 10)
    found = Findings(Sizes(10, 10, 0, False), Spectra(None, physics, None), None, ())
    assert not found.lost
    assert best(found)[0] == "dp"


def test_networks_that_stall_are_half_inverted_if_that_is_affordable():
    assert best(findings(3.0, 1e7, network=1e6))[0] == "hig"
    assert best(findings(100.0, 1e7, network=1e6))[0] == "hig"
    dear = [candidate("dp"), candidate("hig", ratio=1e5), candidate("stable_bptt")]
    name, grades = best(findings(3.0, 1e7, network=1e6), dear)
    assert (name, grades["hig"]) == ("dp", "poor")


def test_only_what_the_scenario_accepts_is_recommended():
    refused = candidate("sip", "exact", special=True, refused="no inverse here")
    name, grades = best(findings(1e3, 1e4), [refused, candidate("dp")])
    assert name == "dp"
    assert set(grades) == {"dp"}


def test_true_controls_are_learned_where_they_are_unique():
    assert best(findings(2.0, 10.0))[1]["supervised"] == "suits"
    assert best(findings(2.0, 10.0, controls=3))[1]["supervised"] == "possible"


def test_what_is_said_follows_the_numbers():
    exploding = StepGradients(10.0 ** np.arange(6, -1, -1), None)
    said = " ".join(remarks(findings(2.0, 1e7, network=1e6, steps=exploding), ["dp"]))
    for words in ("well conditioned: κ = 2", "exploding: a factor 10 per step", "stable_bptt", "is not installed"):
        assert words in said
    assert "not installed" not in " ".join(remarks(findings(2.0, 10.0, steps=exploding), ["dp", "stable_bptt"]))
    vanishing = StepGradients(0.1 ** np.arange(6, -1, -1), None)
    assert "vanishing" in " ".join(remarks(findings(2.0, 10.0, steps=vanishing), []))
    assert "loses directions: 1 of 2" in " ".join(remarks(findings(1.0, 10.0, rank=1), []))
