"""Schroedinger: levels, unitary steps and their derivatives against NumPy; fidelity and superpositions as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_cases import built, relative
from whole_runs import execute

from plugins.schroedinger import (
    MAX_CONDITION,
    PLUGIN,
    Schroedinger,
    SchroedingerParameters,
    SuperpositionOptions,
    hamiltonian,
    levels,
    positions,
    solve_basis,
)
from toolkit import NoOptions, ScenarioError, Timing, load_scenario
from toolkit.core.backend import using
from toolkit.physics.grid import Grid
from toolkit.physics.layout import Layout
from toolkit.physics.rollout import Controls, Rollout
from toolkit.scenario.describe import describe
from toolkit.scenario.load import scenario_from_text

SCENARIO = Path(__file__).parents[2] / "scenarios" / "quantum_dipole_adam.yaml"
FREE = SchroedingerParameters()
STEPS, DT = 384, 0.05
FIDELITY = PLUGIN.losses["fidelity"].build(NoOptions())
TEXT = """
name: case
grid: {cells: {x: 6}, extent: {x: 1.7}, boundary: zero}
pde: schroedinger
time: {steps: 4, dt: 0.05}
controls: {field: {acts_on: force.dipole}}
data: {type: superposition, train: 8, validation: 3}
networks: {f: {type: mlp, layers: [3], activation: tanh, input: target, output: field}}
loss: {type: fidelity, on: final.psi}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.1}}
train: {steps: 2, batch_size: 4}
run: {precision: float64}
"""


def well(cells: int = 14, length: float = 2.0) -> Grid:
    """Walls at 0 and `length`, one cell beyond the outermost points."""
    return Grid({"x": cells}, {"x": cells * length / (cells + 1)}, {"x-": "zero", "x+": "zero"})


WELL = well()


def parts(psi: np.ndarray) -> np.ndarray:
    return np.stack([np.real(psi), np.imag(psi)], axis=-1)


def rollout(backend, grid: Grid, parameters: SchroedingerParameters, steps: int, dt: float) -> Rollout:
    layouts = {"psi": Layout(("re", "im"), dict(grid.cells))}
    return Rollout(backend, Schroedinger(grid, parameters), layouts, {}, steps, dt, {"dipole": Layout()})


def final(backend, start: np.ndarray, dipole: np.ndarray, grid=WELL, parameters=FREE, dt: float = DT) -> np.ndarray:
    """ψ at the end of a compiled rollout, complex (B, N)."""
    roll = rollout(backend, grid, parameters, dipole.shape[1], dt)

    def run(start: Any, dipole: Any) -> Any:
        return roll({"psi": start}, Controls({"dipole": dipole})).final["psi"]

    args = backend.array(parts(start), "physics"), backend.array(dipole, "physics")
    end = backend.numpy(backend.compile(run, *args)(*args))
    return end[..., 0] + 1j * end[..., 1]


def crank_nicolson(psi: np.ndarray, dipole: np.ndarray, grid=WELL, parameters=FREE, dt: float = DT) -> np.ndarray:
    """Dense solves in NumPy, sample by sample."""
    x = positions(grid)
    h, psi = hamiltonian(grid, parameters), np.array(psi, complex)
    for b in range(len(psi)):
        for u in dipole[b]:
            a = 0.5j * dt * (h + u * np.diag(x))
            psi[b] = np.linalg.solve(np.eye(len(x)) + a, psi[b] - a @ psi[b])
    return psi


def some_states(count: int, cells: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    psi = rng.standard_normal((count, cells)) + 1j * rng.standard_normal((count, cells))
    return psi / np.linalg.norm(psi, axis=1, keepdims=True)


# --- levels -------------------------------------------------------------------------------------------------------


def test_levels_of_the_published_well():
    energies, vectors = levels(WELL, FREE)
    assert WELL.dx == pytest.approx((2 / 15,))
    assert positions(WELL) == pytest.approx(np.arange(1, 15) * 2 / 15)
    # Reference: seven decimals; the closed form to rounding of numbers up to 225.
    assert energies[:4] == pytest.approx([2.4583949, 9.7261360, 21.4855881, 37.2228068], abs=5e-8)
    m = np.arange(1, 15)
    assert energies == pytest.approx((2 - 2 * np.cos(np.pi * m / 15)) * 56.25, rel=1e-13)
    waves = np.sin(np.pi * np.outer(m, m) / 15) / 7.5**0.5
    assert np.max(np.abs(vectors - waves)) < 1e-13
    # What the field sees: gaps in the frequency of Crank–Nicolson.
    seen = 2 * np.arctan(energies * DT / 2) / DT
    assert np.diff(seen)[:2] == pytest.approx([7.08567, 10.17566], abs=5e-6)


def test_levels_of_the_well_of_the_closed_loop():
    # Reference: six decimals.
    energies, vectors = levels(well(32), FREE)
    assert energies[:5] == pytest.approx([2.465538, 9.839824, 22.056076, 39.003660, 60.529098], abs=5e-7)
    waves = np.sin(np.pi * np.outer(np.arange(1, 33), np.arange(1, 6)) / 33)
    assert np.max(np.abs(vectors[:, :5] - waves / np.linalg.norm(waves, axis=0))) < 1e-13


def test_dipole_elements():
    _, vectors = levels(WELL, FREE)
    dipole = vectors.T @ np.diag(positions(WELL)) @ vectors
    assert abs(dipole[0, 1]) == pytest.approx(0.360227, abs=5e-7)
    assert abs(dipole[1, 2]) == pytest.approx(0.388992, abs=5e-7)
    # x counts from the left wall, so the mean is the middle, not 0.
    assert dipole[0, 0] == pytest.approx(1.0, abs=1e-13)
    assert dipole[0, 2] == pytest.approx(0.0, abs=1e-13)


def test_levels_of_a_harmonic_potential():
    """−ψ'' + κ (x − c)² ψ has the energies √κ (2n + 1)."""
    parameters = SchroedingerParameters(potential="harmonic", stiffness=16.0)
    energies, _ = levels(well(300, 10.0), parameters)
    # Second order in dx: E² dx² / 4 or so.
    assert energies[:3] == pytest.approx([4.0, 12.0, 20.0], rel=4e-3)


# --- the step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "parameters", "dt"),
    [
        (14, FREE, 0.05),
        (13, SchroedingerParameters(kinetic=0.5, potential="harmonic", stiffness=30.0), 0.2),
        (5, SchroedingerParameters(potential=[3.0, -20.0, 0.5, 40.0, -7.0]), 0.03),
        (1, FREE, 0.1),
        # Ill-conditioned eigenvectors: solved by elimination, on 15 and 31 points.
        (14, FREE, 0.01),
        (21, SchroedingerParameters(potential="harmonic", stiffness=30.0), 0.005),
    ],
)
def test_steps_equal_dense_solves(backend, cells, parameters, dt):
    grid, rng = well(cells), np.random.default_rng(cells)
    start, dipole = some_states(3, cells), 30 * rng.standard_normal((3, 6))
    expected = crank_nicolson(start, dipole, grid, parameters, dt)
    # Rounding times the square of the eigenvectors' condition, 46 at most here.
    assert relative(final(backend, start, dipole, grid, parameters, dt), expected) < 1e-12


def test_populations_and_norm_after_the_published_time(backend):
    _, vectors = levels(WELL, FREE)
    start = np.repeat(vectors[:, :1].T, 3, axis=0)
    dipole = np.stack([np.ones(STEPS), np.zeros(STEPS), 3 * np.random.default_rng(0).standard_normal(STEPS)])
    end = final(backend, start, dipole)
    populations = np.abs(end @ vectors) ** 2
    # Reference values with their digits.
    assert populations[0, :2] == pytest.approx([0.9904782611, 0.0095102751], abs=6e-11)
    assert populations[0, 2:4] == pytest.approx([9.8739e-6, 1.577e-6], abs=6e-10)
    assert populations[1, 0] == pytest.approx(1.0, abs=1e-12)
    # A unitary step keeps the norm to rounding, over 384 steps.
    assert np.max(np.abs(np.sum(np.abs(end) ** 2, axis=1) - 1)) < 1e-12


def test_populations_after_one_strong_step(backend):
    _, vectors = levels(well(32), FREE)
    end = final(backend, vectors[:, :1].T, np.full((1, 1), 5.0), well(32), dt=0.0625)
    populations = np.abs(end @ vectors)[0, :5] ** 2
    # Reference values with their digits.
    expected = [0.99012248, 0.0098276182, 2.3235647e-5, 2.582395e-5, 1.5829e-7]
    assert populations == pytest.approx(expected, rel=4e-5, abs=5e-12)
    assert populations[:3] == pytest.approx(expected[:3], rel=3e-8)


@pytest.mark.parametrize(("cells", "dt"), [(14, 0.05), (32, 0.0625), (100, 0.05), (14, 5e-4), (14, 2.0)])
def test_the_basis_of_the_solve_is_exact_and_well_conditioned(cells, dt):
    grid = well(cells)
    values, vectors, condition = solve_basis(hamiltonian(grid, FREE), positions(grid), dt)
    for u in (0.0, 4.0, -11.0):
        solve = vectors / (values + 0.5j * dt * u) @ vectors.T
        step = 2 * solve - np.eye(cells)
        # The refined basis is as good as rounding allows.
        assert np.max(np.abs(step.conj().T @ step - np.eye(cells))) < 1e-15 * condition * cells
    assert condition < MAX_CONDITION


@pytest.mark.parametrize("cells", [1, 2, 3, 6, 64])
def test_elimination_keeps_the_norm_where_the_eigenvectors_are_useless(backend, cells):
    """Also on one point, on 2^k and on 2^k − 1."""
    grid, dt = well(cells), 1e-3
    start, dipole = some_states(2, cells), 50 * np.random.default_rng(cells).standard_normal((2, 1))
    chosen = Schroedinger(grid, FREE)
    psi = Layout((), dict(grid.cells)).wrap(backend.array(start))
    found = 2 * chosen._solve_points(psi, Layout().wrap(backend.array(dipole[:, 0])), dt) - psi
    end = backend.numpy(Layout((), dict(grid.cells)).native(found, 2))
    assert relative(end, crank_nicolson(start, dipole, grid, FREE, dt)) < 1e-13
    assert np.sum(np.abs(end) ** 2, axis=1) == pytest.approx(np.ones(2), abs=1e-13)
    assert (solve_basis(hamiltonian(grid, FREE), positions(grid), dt)[2] > MAX_CONDITION) == (cells == 64)


def test_single_precision_keeps_the_norm_to_four_digits():
    _, vectors = levels(WELL, FREE)
    for name in ("torch", "jax"):
        with using(name, "cpu", "float32", "float32") as b:
            end = final(b, vectors[:, :1].T, np.ones((1, STEPS)))
        assert end.dtype == np.complex64
        assert np.sum(np.abs(end) ** 2) == pytest.approx(1, abs=5e-4)


def test_batched_jacobian_equals_differences(backend):
    """The control of every step and the start, forward and backward, with the step traced."""
    start, dipole = some_states(2, 14, 1), np.random.default_rng(1).standard_normal((2, 5))
    roll, at = rollout(backend, WELL, FREE, 5, DT), backend.array(parts(start))
    roll.prepare({"psi": at}, Controls({"dipole": backend.array(dipole)}))

    def observe(u: Any) -> Any:
        return backend.xp.reshape(roll({"psi": at}, Controls({"dipole": u})).final["psi"], (u.shape[0], -1))

    u = backend.array(dipole)
    forward = backend.numpy(backend.pushforwards(observe, u))
    backward = backend.numpy(backend.pullbacks(observe, u, False))
    h = 1e-5
    ends = [[crank_nicolson(start, dipole + s * h * e) for s in (1, -1)] for e in np.eye(5)]
    numeric = np.stack([parts((plus - minus) / (2 * h)).reshape(2, -1) for plus, minus in ends])
    # Central differences: h² plus rounding over h.
    assert relative(forward, numeric) < 1e-7
    assert relative(backward, forward.transpose(2, 1, 0)) < 1e-12


# --- loss ---------------------------------------------------------------------------------------------------------


def fidelity(backend, b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(loss per sample, gradient of its sum in b) of complex states (B, N)."""
    layout = Layout(("re", "im"), {"x": b.shape[-1]})
    target = layout.wrap(backend.array(parts(a)))

    def loss(y: Any) -> tuple[Any, Any]:
        value = Layout().native(FIDELITY.value(layout.wrap(y), target), len(b))
        return backend.xp.sum(value), value

    _, value, gradient = backend.value_and_gradient(loss, backend.array(parts(b)))
    return backend.numpy(value), backend.numpy(gradient)


def test_fidelity_and_its_gradient(backend):
    a, b = some_states(3, 14, 2), some_states(3, 14, 3)
    a[1] = a[1].real / np.linalg.norm(a[1].real)
    b[2] = a[2] * np.exp(0.7j)
    value, gradient = fidelity(backend, b, a)
    overlap = np.sum(a.conj() * b, axis=1)
    assert value == pytest.approx(1 - np.abs(overlap) ** 2, abs=1e-14)
    assert value[2] == pytest.approx(0, abs=1e-14)
    # A real target and an overlap p + iq: −2pa and −2qa, without any factor dx.
    expected = -2 * np.stack([overlap[1].real * a[1].real, overlap[1].imag * a[1].real], axis=-1)
    assert relative(gradient[1], expected) < 1e-13


def test_without_a_field_the_loss_is_one_and_flat(backend):
    """The excited levels of the targets are never reached from the ground state: the plateau of the training."""
    drawn = sample(64)
    start = drawn["initial.psi"] @ [1, 1j]
    end = final(backend, start, np.zeros((64, 20)))
    value, gradient = fidelity(backend, end, drawn["target.psi"] @ [1, 1j])
    assert value == pytest.approx(np.ones(64), abs=1e-13)
    assert np.max(np.abs(gradient)) < 1e-13


def test_on_a_trajectory_the_loss_is_the_sum_over_time(backend):
    a, b = (some_states(6, 14, seed).reshape(2, 3, 14) for seed in (4, 5))
    layout = Layout(("re", "im"), {"x": 14}, steps=3)
    value = FIDELITY.value(*(layout.wrap(backend.array(parts(v))) for v in (b, a)))
    expected = np.sum(1 - np.abs(np.sum(a.conj() * b, axis=-1)) ** 2, axis=1)
    assert backend.numpy(Layout().native(value, 2)) == pytest.approx(expected, abs=1e-14)


# --- sampler ------------------------------------------------------------------------------------------------------


def sample(count: int, steps: int = 4, **options: Any) -> dict[str, np.ndarray]:
    sampler = PLUGIN.samplers["superposition"]
    return sampler.sample(
        WELL, FREE, SuperpositionOptions(**options), Timing(steps, DT), np.random.default_rng(0), count
    )


def test_published_samples():
    drawn = sample(4000)
    _, vectors = levels(WELL, FREE)
    # The ground state, with coefficient +1, real.
    assert relative(drawn["initial.psi"], np.repeat(parts(vectors[:, 0].astype(complex))[None], 4000, axis=0)) < 1e-15
    target = drawn["target.psi"]
    assert target.shape == (4000, 14, 2)
    assert np.all(target[..., 1] == 0)
    coefficients = target[..., 0] @ vectors
    assert np.max(np.abs(coefficients[:, [0, *range(3, 14)]])) < 1e-14
    # Uniform on the circle: an angle's mean of cos 2φ, cos 4φ and sin 4φ is 0 to four standard errors.
    angle = np.arctan2(coefficients[:, 2], coefficients[:, 1])
    for wave in (np.cos(angle), np.cos(2 * angle), np.sin(4 * angle)):
        assert abs(np.mean(wave)) < 4 * 0.5**0.5 / 4000**0.5
    assert np.sum(coefficients**2, axis=1) == pytest.approx(np.ones(4000), abs=1e-13)


def test_phases_weights_and_targets_of_every_step():
    drawn = sample(
        2000, initial_levels=[1, 2], initial_weights=[3.0, 1.0], initial_phases=True, target_levels=[4], every_step=True
    )
    _, vectors = levels(WELL, FREE)
    start = drawn["initial.psi"] @ [1, 1j] @ vectors
    assert np.abs(start[:, :2] ** 2).sum(axis=1) == pytest.approx(np.ones(2000), abs=1e-13)
    # |3c₁| > |c₂| in (2/π) atan 3 = 79.5 % of all cases, to four standard errors; phases are uniform.
    assert np.mean(np.abs(start[:, 0]) > np.abs(start[:, 1])) == pytest.approx(0.795, abs=0.036)
    for phase in (np.angle(start[:, 0]), np.angle(start[:, 1] / start[:, 0])):
        assert abs(np.mean(np.exp(1j * phase))) < 0.09
    assert drawn["target.psi"].shape == (2000, 4, 14, 2)
    assert np.all(drawn["target.psi"] == drawn["target.psi"][:1, :1])
    assert relative(drawn["target.psi"][0, 0, :, 0], vectors[:, 3]) < 1e-15


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.target_levels": [2, 7]}, r"data\.target_levels: expected different levels from 1 to 6, got \[2, 7\]"),
        ({"data.initial_levels": [1, 1]}, r"data\.initial_levels: expected different levels"),
        ({"data.target_weights": [1.0]}, r"data\.target_weights: expected 2 numbers"),
        ({"pde": {"type": "schroedinger", "potential": [1.0, 2.0]}}, r"pde\.potential: expected 6 values, .* got 2"),
        ({"grid.boundary": "periodic"}, "boundary"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, message):
    with pytest.raises(ScenarioError, match=message):
        scenario_from_text(TEXT, overrides)


# --- networks and scenario ----------------------------------------------------------------------------------------


def test_a_network_sees_the_target_as_one_vector_and_gives_all_steps(backend):
    case = built(TEXT, backend)
    assert case.params["f/dense0.weight"].shape == (3, 12)
    x, _ = case.problem.predict(case.params, case.buffers, case.validation, training=False)
    target = backend.numpy(case.validation.targets["final.psi"]).reshape(3, 12)
    weights = {key.removeprefix("f/"): backend.numpy(value) for key, value in case.params.items()}
    hidden = np.tanh(target @ weights["dense0.weight"].T + weights["dense0.bias"])
    expected = hidden @ weights["out.weight"].T + weights["out.bias"]
    # The order of the published input: points, and at each its real and imaginary part.
    assert relative(backend.numpy(x["force.dipole"]), expected) < 1e-13


def test_a_network_in_the_loop_steers_by_the_state(backend):
    case = built(TEXT.replace("input: target", "every_step: true"), backend)
    problem, context = case.problem, case.validation.context
    policy = problem.policy(case.params, case.buffers, case.validation.targets)
    found = problem.simulate({}, context, policy, record=True)
    dipole = backend.numpy(found.forces["dipole"])
    assert dipole.shape == (3, 4)
    assert np.min(np.std(dipole, axis=1)) > 1e-6
    grid = Grid({"x": 6}, {"x": 1.7}, {"x-": "zero", "x+": "zero"})
    expected = crank_nicolson(backend.numpy(context["initial.psi"]) @ [1, 1j], dipole, grid)
    assert relative(backend.numpy(found.final["psi"]) @ [1, 1j], expected) < 1e-12
    _, record = case.trainer.step(case.trainer.start(case.params, case.buffers), case.batches(0))
    assert 0 < record["train_loss"] < 1


def test_the_shipped_scenario_has_the_published_sizes():
    described = describe(load_scenario(SCENARIO))
    assert described.trained == 9484
    assert described.controls[0].shape == (384,)
    assert described.observations[0].size == 28


@pytest.mark.parametrize("backend", ["torch", "jax"], indirect=True)
def test_the_scenario_runs_and_writes_states_and_field(tmp_path, backend):
    small = {"time.steps": 8, "data.train": 16, "data.validation": 4, "train.batch_size": 8, "output.every": 1}
    limit = {"train.steps": 4, "train.time_limit": None, "run.backend": backend.name, "run.device": "cpu"}
    limit["run.precision"] = {"physics": "float64", "network": "float32"}
    run = execute(SCENARIO, tmp_path, {**small, **limit})
    with run.stored:
        assert run.fields.field.dims == ("sample", "t")
        assert run.fields.field.attrs["long_name"] == "strength of the dipole field"
        # 1 − |⟨a, b⟩|² of the numbers in the file; the networks compute in single precision.
        assert run.metrics.validation_loss.dropna("step").values[-1] == pytest.approx(1, abs=0.1)
        assert np.all(run.metrics.norm_drift.dropna("step").values < 1e-12)
