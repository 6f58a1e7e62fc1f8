"""Directions of half-inverse gradients and Gauss–Newton against NumPy's SVD of a Jacobian taken row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from jacobian_cases import CHAIN, TEXTS, case_named, gradient_in_y, reference, row_by_row
from numeric_cases import Case, built, heat, relative, tree_relative, updated
from whole_runs import register

from toolkit.core.backend import using
from toolkit.core.half_inverse_choice import HalfInversion
from toolkit.training.half_inversion import invert_samples
from toolkit.training.problem import Batch

# Rounding of J Jᵀ reaches u by its condition number, some 1e8 where singular values down to 1e-4 are kept.
GRAM = 1e-6
MODERATE = "truncation: 1e-4"
ALGORITHMS = ("svd64", "svd", "gram", "tridiagonal", "adaptive", "factored", "lanczos")


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    register(monkeypatch, "pdes", screened="jacobian_cases:SCREENED")


def text(name: str, options: str, kind: str = "hig") -> str:
    return TEXTS[name].replace("{type: hig,", f"{{type: {kind}, {options},")


def half_inverse(
    j: np.ndarray, g: np.ndarray, exponent: float, truncation: float, mode: str = "relative"
) -> np.ndarray:
    """The definition."""
    u, s, vt = np.linalg.svd(j, full_matrices=False)
    kept = s > truncation * (s[0] if mode == "relative" else 1.0)
    return vt[kept].T @ (s[kept] ** exponent * (u[:, kept].T @ g))


def direction(case: Case) -> np.ndarray:
    found = updated(case)["direction"]
    return np.concatenate([found[name].ravel() for name in sorted(found)])


def rule_case(name: str, backend: Any, options: str, kind: str = "hig") -> Case:
    """A case of TEXTS with its rule's options, parameters away from zero."""
    other = built(text(name, options, kind), backend)
    return replace(case_named(name, backend), trainer=other.trainer)


@pytest.mark.parametrize("name", ["network at every step", "convolutions"])
def test_exponent_one_without_truncation_is_the_gradient(backend, name):
    found = direction(rule_case(name, backend, "exponent: 1.0, truncation: 0.0"))
    other = built(text(name, "", "dp").replace("dp, ,", "dp,"), backend)
    assert relative(found, direction(replace(case_named(name, backend), trainer=other.trainer))) < 1e-12


@pytest.mark.parametrize(
    ("backend", "name", "kind"),
    [
        ("torch", "force per step", "gauss_newton"),
        ("jax", "force per step", "gauss_newton"),
        ("torch", "network at every step", "hig"),
        ("jax", "network at every step", "hig"),
        ("torch", "linear solve", "hig"),
        ("torch", "complex state", "gauss_newton"),
    ],
    indirect=["backend"],
)
def test_half_inverse_and_gauss_newton_are_those_of_numpy(backend, name, kind):
    j, g = reference(name)
    found = direction(rule_case(name, backend, MODERATE, kind))
    assert relative(found, half_inverse(j, g, -0.5 if kind == "hig" else -1.0, 1e-4)) < GRAM
    if kind == "gauss_newton":
        assert relative(found, np.linalg.pinv(j, rcond=1e-4) @ g) < GRAM


@pytest.mark.parametrize(
    ("backend", "algorithm"),
    # On JAX one of each way: the algebra is the same, and compiling takes seconds.
    [*(("torch", name) for name in ALGORITHMS), *(("jax", name) for name in ("svd64", "factored", "lanczos"))],
    indirect=["backend"],
)
def test_all_algorithms_agree(backend, algorithm):
    j, g = reference("force per step")
    found = direction(rule_case("force per step", backend, f"{MODERATE}, algorithm: {algorithm}"))
    # Lanczos has all of the 12 dimensions here.
    assert relative(found, half_inverse(j, g, -0.5, 1e-4)) < GRAM


def test_products_alone_give_the_same_where_the_krylov_space_is_complete(backend):
    j, g = reference("network at every step")
    found = direction(rule_case("network at every step", backend, f"{MODERATE}, algorithm: lanczos"))
    # Small Ritz values lose digits to the recursion.
    assert relative(found, half_inverse(j, g, -0.5, 1e-4)) < 1e-3


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_truncation_absolute(backend):
    j, g = reference("force per step")
    s = np.linalg.svd(j)[1]
    cut = float(np.sqrt(s[3] * s[4]))
    found = direction(rule_case("force per step", backend, f"truncation: {cut}, truncation_mode: absolute"))
    assert relative(found, half_inverse(j, g, -0.5, cut, "absolute")) < GRAM


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("name", ["force per step", "convolutions"])
def test_order_of_samples_does_not_matter(backend, name):
    case = rule_case(name, backend, MODERATE)
    order = np.array([2, 0, 1])
    turned = {
        kind: {key: backend.array(backend.numpy(value)[order]) for key, value in group.items()}
        for kind, group in case.validation.tree().items()
    }
    other = replace(case, validation=Batch(turned["targets"], turned["references"], turned["context"]))
    assert relative(direction(other), direction(case)) < GRAM  # rounding times the condition of the kept part, 1e4


TERMS = "[{type: l2, on: final.state}, {type: l1, on: final.state, weight: 0.1}]"


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("loss", ["{type: l1, on: final.state}", TERMS])
def test_any_loss_enters_by_its_gradient(backend, loss):
    written = text("force per step", MODERATE).replace("{type: l2, on: final.state}", loss)
    case = replace(built(written, backend), params=case_named("force per step", backend).params)
    j, _ = reference("force per step")
    assert relative(direction(case), half_inverse(j, gradient_in_y(case), -0.5, 1e-4)) < GRAM


def test_program_compiled_by_jax_gives_what_eager_gives():
    with using("jax", "cpu", "float64", "float64") as backend:
        case = rule_case("one number per sample", backend, MODERATE)
        eager = case.trainer.rule(case.problem, case.params, case.buffers, case.validation)
        found = {name: backend.numpy(value) for name, value in eager.direction.items()}
        compiled = updated(case)
        assert tree_relative(compiled["direction"], found) < 1e-8
        assert float(compiled["loss"][""]) == pytest.approx(float(eager.loss), rel=1e-13)


# --- without networks ---------------------------------------------------------------------------------------------

DIRECT = {
    "more outputs": CHAIN.replace("steps: 6", "steps: 2") + "controls: {drive: {acts_on: force.drive, initial: 0.1}}",
    "more controls": CHAIN + "controls: {drive: {acts_on: force.drive, initial: 0.1}}",
}


@pytest.mark.parametrize(
    ("backend", "name", "options"),
    [
        ("torch", "more outputs", "truncation: 1e-3"),
        ("torch", "more controls", "truncation: 1e-3"),
        ("torch", "more outputs", "truncation: 1e-9"),
        ("torch", "more controls", "truncation: 1e-9"),
        ("jax", "more outputs", "truncation: 1e-9"),
        ("jax", "more controls", "truncation: 1e-3"),
    ],
    indirect=["backend"],
)
def test_controls_are_inverted_sample_by_sample(backend, name, options):
    case = built(DIRECT[name].replace("{type: hig,", f"{{type: hig, {options},"), backend)
    b, rng = backend, np.random.default_rng(4)
    start = {k: v + b.array(0.3 * rng.standard_normal(v.shape)) for k, v in case.params.items()}
    case = replace(case, params=start)
    steps, d = start["control/drive"].shape[1], 4
    whole, g = row_by_row(case), gradient_in_y(case).reshape(3, d)
    found = updated(case)["direction"]["control/drive"]
    for i in range(3):
        rows, columns = slice(d * i, d * i + d), slice(steps * i, steps * i + steps)
        others = np.delete(whole[rows], np.arange(columns.start, columns.stop), axis=1)
        assert not others.any()
        truncation = 1e-9 if "1e-9" in options else 1e-3
        expected = half_inverse(whole[rows, columns], g[i], -0.5, truncation)
        assert relative(found[i], expected) < GRAM


@pytest.mark.parametrize("algorithm", ["gram", "svd64"])
def test_samples_that_are_not_finite_or_zero(backend, algorithm):
    options = HalfInversion(algorithm=algorithm)
    j = np.zeros((2, 2, 3))
    u, report = invert_samples(backend.xp, backend.array(j), backend.array(np.ones((2, 2))), options)
    assert not backend.numpy(u).any()
    assert float(report["kept_rank"]) == 0
    j[1, 0, 1] = np.nan
    u, _ = invert_samples(backend.xp, backend.array(j), backend.array(np.ones((2, 2))), options)
    assert np.isnan(backend.numpy(u)).all()


# --- as the network rule of SIP -----------------------------------------------------------------------------------

PLAIN_HIG = "network_rule: {type: hig, exponent: 1.0, truncation: 0.0}"


def sip_case(backend: Any, more: str, loop: bool) -> Case:
    """A few optimizer steps of SIP, open or closed loop."""
    update = f"sip, inverse_solver: gradient, optimizer: {{type: sgd, learning_rate: 0.1}}{more}"
    if not loop:
        return built(heat(update=update), backend)
    closed = TEXTS["network at every step"].replace(
        "type: hig, optimizer: {type: sgd, learning_rate: 0.1}", f"type: {update}"
    )
    return built(closed, backend)


@pytest.mark.parametrize(
    ("backend", "loop", "more"),
    [
        ("torch", False, ", proxy: l1, inner_updates: 2"),
        ("torch", False, ""),
        ("torch", True, ", inner_updates: 2"),
        ("torch", True, ", proxy: l1"),
        ("jax", True, ", inner_updates: 2"),
    ],
    indirect=["backend"],
)
def test_sip_with_the_plain_gradient_as_network_rule_is_sip(backend, loop, more):
    plain, ruled = sip_case(backend, more, loop), sip_case(backend, f"{more}, {PLAIN_HIG}", loop)
    states = [
        case.trainer.step(case.trainer.start(case.params, case.buffers), case.validation) for case in (plain, ruled)
    ]
    moved = [
        {name: backend.numpy(value - case.params[name]) for name, value in state.params.items()}
        for case, (state, _) in zip((plain, ruled), states, strict=True)
    ]
    assert tree_relative(moved[1], moved[0]) < 1e-9
    assert states[1][1]["train_loss"] == pytest.approx(states[0][1]["train_loss"], rel=1e-12)


# --- Levenberg–Marquardt ------------------------------------------------------------------------------------------


def levenberg_marquardt(j: np.ndarray, g: np.ndarray, damping: float) -> np.ndarray:
    """The definition, as a dense system."""
    s_max = np.linalg.norm(j, 2)
    return np.linalg.solve(j.T @ j + damping * s_max**2 * np.eye(j.shape[1]), j.T @ g)


@pytest.mark.parametrize(
    ("backend", "name", "options"),
    [
        ("torch", "force per step", ""),
        ("jax", "force per step", ""),
        ("torch", "force per step", ", algorithm: svd64"),
        ("torch", "force per step", ", algorithm: gram"),
        ("torch", "force per step", ", algorithm: factored"),
        ("torch", "convolutions", ""),
        ("torch", "network at every step", ", algorithm: cholesky"),
        ("jax", "network at every step", ""),
        ("torch", "linear solve in the loop", ""),
        ("torch", "complex state", ", algorithm: lanczos"),
    ],
    indirect=["backend"],
)
def test_levenberg_marquardt_is_that_of_a_dense_solve(backend, name, options):
    j, g = reference(name)
    found = direction(rule_case(name, backend, f"damping: 1e-5{options}", "levenberg_marquardt"))
    # Rounding and the solve's 1e-12, by a condition number of at most 1e5.
    assert relative(found, levenberg_marquardt(j, g, 1e-5)) < GRAM


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("torch", "initial state, mean corrected"),
        ("jax", "initial state, mean corrected"),
        ("torch", "one network in the loop, one not"),
    ],
    indirect=["backend"],
)
def test_limits_of_levenberg_marquardt(backend, name):
    def found(options: str, kind: str) -> np.ndarray:
        return direction(rule_case(name, backend, options, kind))

    much, gradient = found("damping: 1e8", "levenberg_marquardt"), found("exponent: 1.0, truncation: 0.0", "hig")
    # s² / (λ s_max²) apart.
    assert relative(much / np.linalg.norm(much), gradient / np.linalg.norm(gradient)) < 1e-7
    s = np.linalg.svd(reference(name)[0], compute_uv=False)
    condition = s[0] / s[s > 1e-6 * s[0]][-1]
    assert condition < 200
    little = found("damping: 1e-10", "levenberg_marquardt")
    # λ s_max² / s² apart at most, 4e-6, and by what a rank deficiency leaves of rounding over λ.
    assert relative(little, found("truncation: 1e-6", "gauss_newton")) < 1.1e-10 * condition**2 + GRAM


@pytest.mark.parametrize(
    ("backend", "name"), [("torch", "more outputs"), ("jax", "more controls")], indirect=["backend"]
)
@pytest.mark.parametrize("algorithm", ["auto", "svd64"])
def test_levenberg_marquardt_of_controls_sample_by_sample(backend, name, algorithm):
    options = f"{{type: levenberg_marquardt, damping: 1e-4, algorithm: {algorithm},"
    case = built(DIRECT[name].replace("{type: hig,", options), backend)
    steps = case.params["control/drive"].shape[1]
    moved = {k: v + backend.array(np.linspace(-0.3, 0.3, steps).reshape(1, steps)) for k, v in case.params.items()}
    case = replace(case, params=moved)
    whole, g = row_by_row(case), gradient_in_y(case).reshape(3, 4)
    found = updated(case)["direction"]["control/drive"]
    for i in range(3):
        block = whole[4 * i : 4 * i + 4, steps * i : steps * i + steps]
        assert relative(found[i], levenberg_marquardt(block, g[i], 1e-4)) < GRAM


def test_levenberg_marquardt_trains_and_serves_sip(backend):
    update = "type: hig, optimizer: {type: sgd, learning_rate: 0.1}"
    for kind in (
        "type: levenberg_marquardt, damping: 1e-5, optimizer: {type: sgd, learning_rate: 0.5}",
        "type: sip, inverse_solver: gauss_newton, network_rule: {type: levenberg_marquardt, damping: 1e-5}, "
        "optimizer: {type: sgd, learning_rate: 0.5}",
    ):
        case = built(TEXTS["two networks"].replace(update, kind), backend)
        state, losses, record = case.trainer.start(case.params, case.buffers), [], {}
        for _ in range(12):
            state, record = case.trainer.step(state, case.validation)
            losses.append(record["train_loss"])
        # Half steps halve the residual, and the loss falls to a quarter, where the map is nearly linear.
        assert losses[-1] < 1e-3 * losses[0]
        assert record["largest_singular_value"] > 0
        assert record["algorithm_factored_cholesky"] == 1.0
        assert "kept_rank" not in record
