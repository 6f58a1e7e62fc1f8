"""Conditioning, adjoints and saturation against closed forms and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numeric_cases import built, heat, relative

from toolkit.core.errors import DivergenceError
from toolkit.training.diagnosis import StepGradients, saturated_share, saturation, slope, step_gradients
from toolkit.training.problem import Batch
from toolkit.training.spectra import Sizes, Spectrum, count, first, samples_that_fit, sizes, spectra
from toolkit.training.update_cost import seconds_per_update

PARABOLA = """
name: case
pde: parabola
controls: {x: {acts_on: initial.x, initial: [3.0, 3.0]}}
loss: {type: squared_norm, on: final.y}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.01}}
"""
SINE = """
name: case
pde: {type: sine, xi: 8, phi: 45}
controls: {preimage: {acts_on: initial.x}}
data: {type: uniform, reference: false, validation: 4}
networks: {f: {type: mlp, layers: [6], activation: tanh, input: target, output: preimage}}
loss: {type: l2, on: final.y}
update: {type: dp, optimizer: {type: adam}}
train: {batch_size: 4}
"""
OSCILLATORS = """
name: case
pde: {type: oscillators, number: 2, linear_coupling: 0.2, cubic_coupling: 1.0}
time: {steps: 5, dt: 0.4}
controls: {drive: {acts_on: force.drive}}
data: {type: uniform, range: [0, 1], validation: 3}
networks: {f: {type: mlp, layers: [6], activation: tanh, input: target, output: drive}}
loss: {type: l2, on: final.state}
update: {type: dp, optimizer: {type: adam}}
train: {batch_size: 3}
"""
LOOP = OSCILLATORS.replace("input: target, output: drive", "input: [state, target], output: drive, every_step: true")


def spectra_of(case, **more):
    return spectra(case.problem, case.params, case.buffers, case.batches(0), **more)


# --- spectra ------------------------------------------------------------------------------------------------------


def test_the_parabola_has_the_singular_values_of_its_jacobian(backend):
    case = Direct(backend)
    found = spectra(case.problem, case.params, {}, Batch())
    assert found.network is None
    assert found.total is None
    # y = (x0, x1²) at (3, 3): J = diag(1, 6); exact but for rounding.
    np.testing.assert_allclose(found.physics.values, [[6.0, 1.0]], rtol=1e-12)
    assert found.physics.condition == pytest.approx(6.0, rel=1e-12)
    assert found.physics.decades == pytest.approx(math.log10(6.0), rel=1e-12)
    assert found.physics.rank == 2
    assert found.physics.full


class Direct:
    """A direct optimisation without data, which `built` does not know."""

    def __init__(self, backend):
        from numeric_cases import no_file

        from toolkit.scenario.build import build
        from toolkit.scenario.load import scenario_from_text

        made = build(scenario_from_text(PARABOLA).sections, backend, no_file)
        self.problem, self.params = made.problem, made.params


def test_the_sine_has_its_condition_number_where_the_cosine_is_known(backend):
    case = built(SINE, backend)
    found = spectra_of(case)
    x, _ = case.problem.predict(case.params, {}, case.batches(0), training=False)
    angle = np.pi / 4
    h1 = backend.numpy(x["initial.x"]) @ np.array([np.cos(angle), -np.sin(angle)]) * 10 / 8
    other = backend.numpy(x["initial.x"]) @ np.array([np.cos(angle), np.sin(angle)]) * 10 / 8
    # J = diag(10/ξ cos h₁, 10 ξ) R: the rotation changes no singular value; its sense is that of the plugin.
    known = [np.sort(np.stack([np.abs(np.cos(h)) * 10 / 8, np.full(4, 80.0)], 1))[:, ::-1] for h in (h1, other)]
    assert min(relative(found.physics.values, values) for values in known) < 1e-10  # rounding of 80 against 1


def test_diffusion_has_its_decay_rates_as_singular_values(backend):
    case = built(heat(), backend)
    found = spectra_of(case)
    k = 2 * np.pi * np.fft.fftfreq(8)
    decay = np.sort(np.exp(-0.05 * k**2))[::-1]
    assert found.physics.values.shape == (3, 8)
    assert relative(found.physics.values, np.tile(decay, (3, 1))) < 1e-12  # an FFT of eight numbers
    assert found.physics.condition == pytest.approx(math.exp(0.05 * np.pi**2), rel=1e-10)


@pytest.mark.parametrize("text", [heat(), OSCILLATORS, LOOP], ids=["more", "fewer", "loop"])
def test_the_jacobian_of_the_batch_agrees_with_finite_differences(backend, text):
    case = built(text, backend)
    batch, problem = case.batches(0), case.problem
    found = spectra_of(case)
    names, h = sorted(case.params), 1e-5

    def function(params):
        x, _ = problem.predict(params, {}, batch, training=False)
        return problem.observe(x, batch.context, problem.policy(params, {}, batch.targets))

    compiled = backend.compile(function, case.params)

    def observed(params):
        y = compiled(params)
        return np.concatenate([backend.numpy(y[key]).reshape(3, -1) for key in problem.observations], axis=1).ravel()

    columns = []
    for name in names:
        flat = backend.numpy(case.params[name])
        for i in range(flat.size):
            moved = [flat.copy() for _ in range(2)]
            moved[0].flat[i] += h
            moved[1].flat[i] -= h
            ends = [observed({**case.params, name: backend.array(m)}) for m in moved]
            columns.append((ends[0] - ends[1]) / (2 * h))
    known = np.linalg.svd(np.stack(columns, 1), compute_uv=False)
    # Central differences: h² of the third derivative, and rounding / h.
    assert relative(found.total.values, known) < 1e-8
    assert (found.network is None) == ("every_step" in text)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_fewer_samples_give_the_spectrum_of_the_first_ones(backend):
    case = built(OSCILLATORS, backend)
    part, params = first(case.batches(0), case.params, 2)
    assert count(part) == 2
    few, known = spectra_of(case, samples=2), spectra(case.problem, params, {}, part)
    assert few.total.rows == 8
    np.testing.assert_allclose(few.total.values, known.total.values, rtol=1e-12)


def test_samples_are_taken_until_memory_or_work_ends():
    assert samples_that_fit(4, 1000, 256) == 256
    assert samples_that_fit(2**10, 2**10, 64, stacked=False) == 8  # below 1e10 / 2^30 multiplications, by quarters
    assert 1 <= samples_that_fit(1000, 25_000, 64) < 4  # 3000² · 25 000 is too much
    assert samples_that_fit(4096, 10**6, 64) == 0


def test_rank_condition_and_decades_of_known_values():
    spectrum = Spectrum(np.array([1e3, 10.0, 1.0, 1e-4, 0.0]), 5, 9)
    assert (spectrum.rank, spectrum.full) == (3, False)
    assert spectrum.condition == pytest.approx(1e3)
    assert spectrum.typical == pytest.approx(1e3)
    assert spectrum.decades == pytest.approx(7.0)
    zero = Spectrum(np.zeros((2, 3)), 3, 3)
    assert zero.rank == 0
    assert math.isnan(zero.condition)
    assert math.isnan(zero.typical)


def test_numbers_that_are_not_finite_are_named(backend):
    case = built(SINE, backend)
    broken = {name: value * np.inf for name, value in case.params.items()}
    with pytest.raises(DivergenceError, match="not finite"):
        spectra(case.problem, broken, {}, case.batches(0))
    case = built(OSCILLATORS, backend)
    broken = {name: value * np.nan for name, value in case.params.items()}
    with pytest.raises(DivergenceError, match="time step"):
        step_gradients(case.problem, broken, {}, case.batches(0))


# --- gradients per step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [OSCILLATORS, LOOP], ids=["open", "closed"])
def test_gradients_per_step_agree_with_finite_differences(backend, text):
    case = built(text, backend)
    batch, problem, h = case.batches(0), case.problem, 1e-5
    found = step_gradients(problem, case.params, {}, batch)
    x, _ = problem.predict(case.params, {}, batch, training=False)
    layout = problem.rollout.layouts["state"]

    def function(moved):
        policy = problem.policy(case.params, {}, batch.targets)
        y = problem.read(problem.simulate(x, batch.context, policy, offsets=moved), x)
        return problem.loss(y, batch.targets)

    gradient = np.zeros((3, 6, *layout.shape))
    compiled = backend.compile(function, {"state": backend.array(gradient)})

    def loss(offsets):
        return backend.numpy(compiled({"state": backend.array(offsets)}))

    for index in np.ndindex(6, *layout.shape):
        step = np.zeros_like(gradient)
        step[:, *index] = h
        gradient[:, *index] = (loss(step) - loss(-step)) / (2 * h)
    norms = np.sqrt((gradient**2).reshape(3, 6, -1).sum(2).mean(0))
    np.testing.assert_allclose(found.state, norms, rtol=1e-7)  # central differences
    assert found.control.shape == (5,)
    assert np.all(found.control > 0)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_forces_have_the_gradient_of_the_loss_in_them(backend):
    case = built(OSCILLATORS, backend)
    batch, problem, b = case.batches(0), case.problem, backend
    x, _ = problem.predict(case.params, {}, batch, training=False)

    def loss(x):
        return b.xp.sum(problem.loss(problem.observe(x, batch.context), batch.targets)), ()

    gradient = b.numpy(b.value_and_gradient(loss, x)[2]["force.drive"])
    norms = np.sqrt((gradient.reshape(3, 5, -1) ** 2).sum(2).mean(0))
    found = step_gradients(problem, case.params, {}, batch).control
    np.testing.assert_allclose(found, norms, rtol=1e-10)  # the same derivative in another order


def test_the_ends_of_the_adjoints_are_known(backend):
    case = built(OSCILLATORS, backend)
    batch, problem, b = case.batches(0), case.problem, backend
    x, _ = problem.predict(case.params, {}, batch, training=False)

    def loss(context):
        y = problem.observe(x, {**batch.context, **context})
        return b.xp.sum(problem.loss(y, batch.targets)), y

    start = {"initial.state": batch.context["initial.state"]}
    _, y, gradient = b.value_and_gradient(loss, start)
    ends = [gradient["initial.state"], y["final.state"] - batch.targets["final.state"]]
    norms = [np.sqrt((b.numpy(end) ** 2).reshape(3, -1).sum(1).mean()) for end in ends]
    found = step_gradients(problem, case.params, {}, batch).state
    np.testing.assert_allclose(found[[0, -1]], norms, rtol=1e-10)  # the same derivative, and y − y* of ½|y − y*|²


def test_a_single_step_has_no_gradients_per_step(backend):
    case = built(SINE, backend)
    assert step_gradients(case.problem, case.params, {}, case.batches(0)) is None


def test_growth_is_per_step_backward_in_time():
    steps = StepGradients(2.0 ** np.arange(10, -1, -1), None)
    assert steps.growth == pytest.approx(2.0)
    assert steps.total == pytest.approx(1024.0)
    assert math.isnan(StepGradients(np.array([0.0, 0.0, 1.0]), None).growth)


# --- saturation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tanh", "sigmoid"])
def test_huge_weights_saturate_a_network(backend, kind):
    case = built(heat(network=f"mlp, layers: [5, 4], activation: {kind}"), backend)
    batch = case.batches(0)
    before = saturation(case.problem, case.params, {}, batch)
    assert [s.layer for s in before] == ["activation0", "activation1"]
    assert all(s.share == 0.0 for s in before)
    huge = {name: 1e6 * value for name, value in case.params.items()}
    assert all(s.share > 0.9 for s in saturation(case.problem, huge, {}, batch))


def test_a_unit_is_dead_that_no_sample_reaches(backend):
    case = built(heat(network="mlp, layers: [4], activation: relu"), backend)
    bias = np.array([-1e3, 1e3, -1e3, -1e3])
    params = {**case.params, "f/dense0.bias": backend.array(bias, "network")}
    (found,) = saturation(case.problem, params, {}, case.batches(0))
    assert (found.network, found.kind, found.share) == ("f", "relu", 0.75)


def test_a_network_in_the_loop_is_judged_in_the_states_it_meets(backend):
    case = built(LOOP, backend)
    # Zero initial momenta and small states: only a bias saturates whatever is met.
    bias = backend.array(np.full(6, 1e3), "network")
    (found,) = saturation(case.problem, {**case.params, "f/dense0.bias": bias}, {}, case.batches(0))
    assert found.share == 1.0


def test_channels_count_as_units():
    z = -np.ones((2, 3, 4, 4))
    z[1, 0, 2, 2] = 1.0
    assert saturated_share("relu", z) == pytest.approx(2 / 3)
    assert saturated_share("leaky_relu", z) == 0.0


@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu", "gelu"])
@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_slopes_are_those_of_the_activations(backend, kind):
    from toolkit.core.architecture import Activation, ArchitectureBuilder

    builder = ArchitectureBuilder((1,))
    builder.add("a", Activation(kind))
    network, z, h = backend.network(builder.build()), np.linspace(-4, 4, 40)[:, None], 1e-6
    ends = [backend.numpy(network.apply({}, {}, backend.array(z + s * h), False)[0]) for s in (1, -1)]
    np.testing.assert_allclose(slope(kind, z), (ends[0] - ends[1]) / (2 * h), atol=1e-8)  # rounding / h


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="slope of activation 'sine'"):
        slope("sine", np.zeros((1, 1)))


# --- sizes and times ---------------------------------------------------------------------------------------------


def test_sizes_and_time_of_an_update(backend):
    case = built(OSCILLATORS, backend)
    assert sizes(case.problem, case.params) == Sizes(5, 4, 4 * 6 + 6 + 6 * 5 + 5, False)
    assert 0 < seconds_per_update(case.trainer, case.params, {}, case.batches(0)) < 10
