"""Poisson: exact solves for every boundary, grid and axis; the exact inverse; sources that have no potential."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import built, relative, tree_relative, updated
from phi import field
from phiml import math
from phiml.math import batch, spatial
from poisson_cases import BOXES, LEARNED, PAPER, SIDES, box, noise, pde, problem, rollout, singular, solved, sources

from plugins.poisson import eigenbasis
from toolkit import linear_solve
from toolkit.physics.grid import Grid
from toolkit.physics.plugin import Inputs
from toolkit.scenario.load import load_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """PhiML computes in double precision where no backend is asked for."""
    with math.precision(64):
        yield


def second_difference(cells: int, dx: float, lower: str, upper: str) -> np.ndarray:
    """The one-dimensional Laplacian as a matrix, written down from what lies outside each end."""
    matrix = -2 * np.eye(cells) + np.eye(cells, k=1) + np.eye(cells, k=-1)
    for side, inside, opposite in ((lower, 0, -1), (upper, -1, 0)):
        if side == "periodic":
            matrix[inside, opposite] += 1
        elif side == "zero_gradient":
            matrix[inside, inside] += 1
    return matrix / dx**2


def laplacian(grid: Grid) -> np.ndarray:
    """∇² as a matrix over all cells in C order."""
    total = np.zeros((np.prod(grid.shape),) * 2)
    for i, axis in enumerate(grid.axes):
        lower, upper = grid.side(axis, "-"), grid.side(axis, "+")
        assert isinstance(lower, str)
        assert isinstance(upper, str)
        along = second_difference(grid.shape[i], grid.dx[i], lower, upper)
        before, after = np.prod(grid.shape[:i], dtype=int), np.prod(grid.shape[i + 1 :], dtype=int)
        total += np.kron(np.kron(np.eye(before), along), np.eye(after))
    return total


# --- the solve ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("kind", SIDES)
def test_eigenbasis_is_orthonormal_and_diagonalises_the_second_difference(kind, cells):
    lower, upper = SIDES[kind]
    values, vectors = eigenbasis(cells, 0.7, lower, upper)
    # Rounding of products of a few numbers of order one (of order 1/dx² for the matrix).
    assert np.max(np.abs(vectors.T @ vectors - np.eye(cells))) < 1e-14
    assert np.max(np.abs(vectors * values @ vectors.T - second_difference(cells, 0.7, lower, upper))) < 5e-14


def test_eigenvalues_of_the_published_case():
    eigenvalues = pde(PAPER).eigenvalues.numpy("x_mode,y_mode")
    assert np.max(eigenvalues) == pytest.approx(-0.004671, abs=5e-7)
    assert np.min(eigenvalues) == pytest.approx(-7.9953, abs=5e-5)
    i = np.pi * np.arange(1, 65) / 65
    assert relative(eigenvalues, -(4 - 2 * np.cos(i)[:, None] - 2 * np.cos(i)[None])) < 1e-13


@pytest.mark.parametrize("kinds", BOXES, ids=" ".join)
def test_solution_equals_the_dense_solve_in_numpy(kinds):
    """Without a backend: NumPy's own least squares, which also gives the potential of mean zero."""
    grid = box(kinds)
    x, matrix = sources(grid), laplacian(grid)
    potential = pde(grid).solve(math.tensor(x, batch("sample"), spatial(*grid.axes)))
    found = potential.numpy(("sample", *grid.axes))
    expected = np.stack([np.linalg.lstsq(matrix, s.ravel(), rcond=1e-12)[0].reshape(grid.shape) for s in x])
    # Rounding times the condition number, at most a few hundred here.
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize(
    "kinds",
    [("periodic",), ("mixed",), ("zero", "zero"), ("zero_gradient", "periodic"), ("periodic", "zero", "turned")],
    ids=" ".join,
)
def test_the_laplacian_of_the_solution_is_the_source(backend, kinds):
    grid = box(kinds)
    x = sources(grid)
    y = solved(backend, grid, x)
    residual = y.reshape(2, -1) @ laplacian(grid).T - x.reshape(2, -1)
    assert np.max(np.abs(residual)) < 1e-12 * np.max(np.abs(x))
    if singular(kinds):
        assert np.max(np.abs(y.mean(tuple(range(1, y.ndim))))) < 1e-14 * np.max(np.abs(y))


@pytest.mark.parametrize("kinds", BOXES, ids=" ".join)
def test_the_operator_is_the_matrix_and_phiflows_laplacian(kinds):
    grid = box(kinds)
    y = math.tensor(np.random.default_rng(1).standard_normal(grid.shape), spatial(*grid.axes))
    found = pde(grid).laplace(y).numpy(grid.axes)
    assert relative(found.ravel(), laplacian(grid) @ y.numpy(grid.axes).ravel()) < 1e-13
    assert relative(found, field.laplace(grid.field(y)).values.numpy(grid.axes)) < 1e-13


@pytest.mark.parametrize("kinds", [("zero_gradient",), ("periodic", "zero_gradient")], ids=" ".join)
def test_a_mean_that_no_potential_can_have_is_ignored(backend, kinds):
    grid = box(kinds)
    x = sources(grid)
    # Adding 3 to numbers of order one and taking it away again rounds the last digit.
    assert relative(solved(backend, grid, x + 3), solved(backend, grid, x)) < 1e-13


def test_more_steps_and_another_order_of_axes_change_nothing(backend):
    grid = box(("zero", "mixed"))
    x = sources(grid)
    assert np.array_equal(solved(backend, grid, x), solved(backend, grid, x, steps=3))
    turned = math.tensor(x.transpose(2, 1, 0), spatial("y,x"), batch("sample"))
    found = pde(grid).step({"source": turned, "potential": 0 * turned}, Inputs(), 0.0, 1.0)["potential"]
    assert relative(found.numpy("sample,x,y"), solved(backend, grid, x)) < 1e-13


def test_solution_equals_phiflows_conjugate_gradients(backend):
    """PhiFlow's own iterative solve of its own Laplacian, on cells of another shape than squares."""
    grid = Grid({"x": 12, "y": 10}, {"x": 6.0, "y": 13.0}, dict.fromkeys(("x-", "x+", "y-", "y+"), "zero"))
    x = sources(grid, 1)[0]
    right = grid.field(math.reshaped_tensor(backend.array(x, "physics"), [spatial("x"), spatial("y")], convert=False))
    solve = math.copy_with(linear_solve(1e-8, 0.0), x0=0 * right)
    found = field.solve_linear(field.laplace, right, solve).values.numpy("x,y")
    # What a relative residual of 1e-8 leaves with a condition number of some tens.
    assert relative(found, solved(backend, grid, x[None])[0]) < 1e-5


@pytest.mark.parametrize(("kind", "order"), [("zero", 2), ("mixed", 2), ("periodic", 2), ("zero_gradient", 2)])
def test_convergence_to_the_analytic_potential(kind, order):
    """y = sin kX (or cos), ∇²y = −k²y; X counts from where the boundary condition holds.

    `zero` holds at the centre of the ghost cell, `zero_gradient` at the face: with h = L / (N + 1) or L / (N + ½)
    these places are 0 and L for every N.
    """
    errors = []
    for cells in (16, 32, 64):
        outside = {"zero": 1.0, "mixed": 0.5, "periodic": 0.0, "zero_gradient": 0.0}[kind]
        h = 1 / (cells + outside)
        lower, upper = SIDES[kind]
        grid = Grid({"x": cells}, {"x": cells * h}, {"x-": lower, "x+": upper})
        k = {"zero": np.pi, "mixed": np.pi / 2, "periodic": 2 * np.pi, "zero_gradient": np.pi}[kind]
        place = (np.arange(cells) + (1.0 if lower == "zero" else 0.5)) * h
        exact = np.cos(k * place) if kind == "zero_gradient" else np.sin(k * place)
        found = pde(grid).solve(math.tensor(-(k**2) * exact, spatial("x"))).numpy("x")
        errors.append(np.max(np.abs(found - exact)))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    # h halves up to (N + 1) / N, and the next term of the error is of order 4.
    assert np.all(np.abs(rates - order) < 0.15), rates


@pytest.mark.parametrize("kinds", [("zero", "mixed"), ("periodic", "zero_gradient")], ids=" ".join)
def test_gradient_is_the_solve_itself(backend, kinds):
    """The Laplacian is symmetric: ∂/∂x ½Σ(Px)² = P P x."""
    grid = box(kinds)
    roll, x = rollout(backend, grid), backend.array(sources(grid), "physics")

    def half_square(x: Any) -> Any:
        y = roll({"source": x, "potential": 0 * x}).final["potential"]
        return 0.5 * backend.xp.sum(y**2), ()

    found = backend.compile(lambda x: backend.value_and_gradient(half_square, x)[2], x)(x)
    expected = solved(backend, grid, solved(backend, grid, sources(grid)))
    assert relative(backend.numpy(found), expected) < 1e-13


def test_derivatives_pass_forward_and_batched(backend):
    """What the rules that form Jacobians need: forward and backward products, with the step traced."""
    grid = box(("zero", "periodic"))
    made, rng = problem(backend, grid), np.random.default_rng(3)
    x, v = (backend.array(rng.standard_normal((2, *grid.shape)), "physics") for _ in range(2))
    _, push, pull = backend.linearize(lambda x: made.observe({"initial.source": x}, {})["final.potential"], x)
    expected = solved(backend, grid, backend.numpy(v))
    assert relative(backend.numpy(push(v)), expected) < 1e-13
    assert relative(backend.numpy(pull(v)), expected) < 1e-13


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_single_precision_stays_single(backend):
    from toolkit.core.backend import using

    with using(backend, "cpu", "float32", "float32") as b:
        y = solved(b, PAPER, noise(1))
    assert y.dtype == np.float32
    # Seven digits times the condition number 1712, mostly kept by the smoothness of the source.
    exact = pde(PAPER).solve(math.tensor(noise(1), batch("sample"), spatial("x,y"))).numpy("sample,x,y")
    assert relative(y, exact) < 1e-5


# --- the inverse --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("zero", "zero"), ("mixed",), ("periodic", "zero_gradient")], ids=" ".join)
def test_one_call_of_the_inverse_gives_the_true_source(backend, kinds):
    grid = box(kinds)
    found = inverted(backend, grid, sources(grid), start=2.5)
    assert relative(found, sources(grid)) < 1e-12


def test_one_call_of_the_inverse_on_the_published_case(backend):
    x = noise(4)
    # A condition number of 1712 costs three of sixteen digits.
    assert relative(inverted(backend, PAPER, x, start=0.0), x) < 1e-10


def inverted(backend, grid: Grid, x_true: np.ndarray, start: float) -> np.ndarray:
    """x̂ from a constant (plus the reversed truth, for an x that is not special)."""
    made, key = problem(backend, grid), "initial.source"

    def run(x: Any, x_true: Any) -> Any:
        y, y_target = made.observe({key: x}, {}), made.observe({key: x_true}, {})
        return made.invert({key: x}, y, y_target, {})[key]

    natives = [backend.array(a, "physics") for a in (start + x_true[:, ::-1].copy(), x_true)]
    return backend.numpy(backend.compile(run, *natives)(*natives))


def test_sip_is_supervised_training_without_the_answers(backend):
    """The equation is linear and the inverse exact, so x̃ = x* and the two directions are one."""
    updates = ("sip, inverse_solver: laplacian", "supervised")
    sip, supervised = (updated(built(LEARNED.format(update=u, boundary="zero"), backend))["direction"] for u in updates)
    assert tree_relative(sip, supervised) < 1e-10


def test_on_a_periodic_box_sip_also_drives_out_the_mean(backend):
    """No potential tells the mean of the source; x̃ has none, and so SIP is supervised training there, too."""
    updates = ("sip, inverse_solver: laplacian", "supervised")
    cases = [built(LEARNED.format(update=u, boundary="periodic"), backend) for u in updates]
    found = [updated(case) for case in cases]
    assert tree_relative(found[0]["direction"], found[1]["direction"]) < 1e-10
    x, frozen = (found[0][kind]["initial.source"] for kind in ("controls", "frozen"))
    assert np.max(np.abs(x.mean((1, 2)))) > 1e-3
    assert np.max(np.abs(frozen.mean((1, 2)))) < 1e-14


def test_the_shipped_scenarios_differ_in_their_update_alone():
    sip, adam = (load_scenario(SCENARIOS / f"{name}.yaml").sections for name in ("poisson", "poisson_adam"))
    for key in ("grid", "pde", "time", "controls", "data", "networks", "loss", "train", "run", "output"):
        assert getattr(sip, key) == getattr(adam, key), key


def test_sip_learns_faster_than_differentiable_physics(backend):
    """The gradient of the loss in y sees a scale k of the source weakened by 1/k⁴; SIP sees all alike."""
    errors = []
    for update in ("sip, inverse_solver: laplacian", "dp"):
        text = LEARNED.format(update=update, boundary="zero").replace("{type: sgd, learning_rate: 0.1}", "adam")
        case = built(text, backend, grid__cells={"x": 16, "y": 16}, update__optimizer__learning_rate=1e-2)
        state = case.trainer.start(case.params, case.buffers)
        for k in range(40):
            state, record = case.trainer.step(state, case.batches(k))
        errors.append(record["train_control_error"])
    assert errors[0] < 0.7 * errors[1]
