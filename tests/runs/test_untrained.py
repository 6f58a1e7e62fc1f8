"""What a network in the loop did before training: stored beside what it does after it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from phiml import math
from whole_runs import HEAT, assert_compliant, cli, execute, status, write_scenario

import toolkit
from toolkit.core.errors import StorageError
from toolkit.runs import session
from toolkit.runs.layout import Variable
from toolkit.runs.phiflow_fields import grid_from_attributes, to_phiflow
from toolkit.training.data import file_key

SWING = """\
name: swing
description: One pole on a cart, pushed by a small network.
pde: {type: cart_pole}
time: {steps: 7, dt: 0.05}
controls: {push: {acts_on: force.push}}
data: {type: hanging, train: 4, validation: 3, seed: 2}
networks: {f: {type: mlp, layers: [5], activation: tanh, every_step: true, input: state, output: push}}
loss: {type: upright, on: final.angle}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.5}}
train: {steps: 4, batch_size: 2, validate_every: 2, checkpoint_every: 2}
run: {backend: torch, precision: float64, seed: 3}
output: {plots: false}
"""
FLOW = """\
name: flow
description: A network pushes a Burgers flow at every step.
grid: {cells: {x: 8}, extent: {x: 2.0}, boundary: periodic}
pde: {type: burgers, viscosity: 0.1}
time: {steps: 4, dt: 0.05}
controls: {push: {acts_on: force.velocity}}
data: {type: wave_pairs, modes: 2, train: 4, validation: 3, seed: 1}
networks: {f: {type: conv_net, layers: [3], kernel: 3, every_step: true, input: [state, target], output: push}}
loss: {type: l2, on: final.velocity}
update: {type: dp, optimizer: {type: sgd, learning_rate: 0.5}}
train: {steps: 2, batch_size: 2}
run: {backend: torch, precision: float64}
output: {plots: false}
"""
UNTRAINED = ("cart_untrained", "angle_untrained", "angular_velocity_untrained", "push_untrained")


def swung(cart, angle, rate, weights, steps, dt):
    """The cart-pole and its network in plain NumPy: cart (n, t, 2), angle (n, t), push (n, t) of n samples."""
    g, m, M, half = 9.8, 0.1, 1.1, 0.5
    seen, done = [(cart, angle)], []
    for _ in range(steps):
        x = np.stack([cart[:, 0], cart[:, 1], angle, rate], axis=1)
        hidden = np.tanh(x @ weights["f/dense0.weight"].T + weights["f/dense0.bias"])
        push = (hidden @ weights["f/out.weight"].T + weights["f/out.bias"])[:, 0]
        sine, cosine = np.sin(angle), np.cos(angle)
        own = (push + m * half * sine * rate**2) / M
        angular = (g * sine - cosine * own) / (half * (4 / 3 - m / M * cosine**2))
        velocity = cart[:, 1] + dt * (push + m * half * (sine * rate**2 - angular * cosine)) / M
        rate = rate + dt * angular
        cart, angle = np.stack([cart[:, 0] + dt * velocity, velocity], axis=1), angle + dt * rate
        seen.append((cart, angle))
        done.append(push)
    carts, angles = zip(*seen, strict=True)
    return np.stack(carts, axis=1), np.stack(angles, axis=1), np.stack(done, axis=1)


@pytest.fixture(scope="module", params=["torch", "jax"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    path = write_scenario(folder, SWING)
    run = execute(path, folder, {"run.backend": request.param})
    yield path, run
    run.stored.close()


def test_it_is_a_rollout_with_the_initial_weights(tmp_path, trained):
    path, run = trained
    backend = run.stored.record.backend
    # A learning rate this small leaves every weight as it was, to the last bit.
    still = execute(path, tmp_path, {"run.backend": backend, "update.optimizer.learning_rate": 1e-300})
    ds = run.fields
    start = [ds[n].isel(t=0).values for n in ("cart", "angle", "angular_velocity")]
    cart, angle, push = swung(start[0], start[1][:, 0], start[2][:, 0], still.network, 7, 0.05)
    # Seven steps of rounding of numbers up to 4, amplified by e^(ω t) with ω t < 2.
    rtol, atol = 1e-12, 1e-13
    np.testing.assert_allclose(ds.cart_untrained.values, cart, rtol, atol)
    np.testing.assert_allclose(ds.angle_untrained.values[..., 0], angle, rtol, atol)
    np.testing.assert_allclose(ds.push_untrained.values[:, :-1], push, rtol, atol)
    assert np.isnan(ds.push_untrained.values[:, -1]).all()

    after = swung(start[0], start[1][:, 0], start[2][:, 0], run.network, 7, 0.05)
    np.testing.assert_allclose(ds.push.values[:, :-1], after[2], rtol, atol)
    assert np.abs(after[2] - push).max() > 1e-3

    for name in ("cart", "angle", "push"):
        np.testing.assert_array_equal(still.fields[name], still.fields[f"{name}_untrained"])
    still.stored.close()


def test_its_loss_is_that_of_the_validation_before_the_first_update(trained):
    ds, metrics = trained[1].fields, trained[1].metrics
    for name, at in (("angle_untrained", 0), ("angle", 4)):
        loss = float((1 - np.cos(ds[name].isel(t=-1))).mean())
        # Means of six cosines.
        assert float(metrics.validation_loss.sel(step=at)) == pytest.approx(loss, rel=1e-13)


def test_it_is_described_and_complies(trained):
    _, run = trained
    ds = run.fields
    assert set(ds.data_vars) == {*UNTRAINED, *(name.removesuffix("_untrained") for name in UNTRAINED)}
    for name in UNTRAINED:
        after = ds[name.removesuffix("_untrained")]
        assert ds[name].dims == after.dims
        assert ds[name].attrs["role"] == "untrained"
        assert ds[name].attrs["units"] == after.attrs["units"]
        assert ds[name].attrs["long_name"] == f"{after.attrs['long_name']} before training"
    assert ds.push.attrs["role"] == "control"
    assert_compliant(run.path)


def test_only_what_is_asked_for_is_written(tmp_path, trained):
    path, run = trained
    wanted = {"output.samples": 2, "output.every": 3, "output.fields": ["angle", "push"]}
    part = execute(path, tmp_path, {"run.backend": run.stored.record.backend, **wanted})
    ds = part.fields
    assert set(ds.data_vars) == {"angle", "angle_untrained", "push", "push_untrained"}
    for name in ("angle", "angle_untrained", "push", "push_untrained"):
        expected = run.fields[name].isel(sample=slice(2), t=[0, 3, 6, 7])
        # Batches of two and of three samples are summed in different order.
        xr.testing.assert_allclose(ds[name], expected, rtol=1e-13)
    part.stored.close()


def test_a_resumed_run_has_the_same(tmp_path, monkeypatch, trained):
    path, whole = trained
    append, seen = session.MetricsWriter.append, []

    def full(self, record):
        seen.append(record["step"])
        if record["step"] == 3 and seen.count(3) == 1:
            raise StorageError("the disk is full")
        append(self, record)

    monkeypatch.setattr(session.MetricsWriter, "append", full)
    backend = whole.stored.record.backend
    assert cli("run", path, "--out", tmp_path, "--name", "it", "--backend", backend, "--quiet").exit_code == 1
    run = tmp_path / "swing" / "it"
    assert status(run)["status"] == "failed"
    assert cli("resume", run, "--quiet").exit_code == 0
    with toolkit.open_run(run) as resumed:
        xr.testing.assert_equal(resumed.fields, whole.fields)


def test_a_network_in_open_loop_leaves_none(tmp_path):
    run = execute(write_scenario(tmp_path, HEAT), tmp_path, {"train.steps": 1})
    assert not [name for name in run.fields.data_vars if str(name).endswith("_untrained")]
    run.stored.close()


def test_on_a_grid_it_can_be_turned_into_a_field_again_and_is_drawn(tmp_path):
    run = execute(write_scenario(tmp_path, FLOW, ("{plots: false}", "{plots: true}")), tmp_path)
    before = run.fields.velocity_untrained
    assert grid_from_attributes(before.attrs) == grid_from_attributes(run.fields.velocity.attrs)
    with math.precision(64):
        values = to_phiflow(before.isel(t=-1)).values.numpy("sample,x,vector")
    np.testing.assert_array_equal(values.ravel(), before.isel(t=-1).values.ravel())
    assert (run.path / "plots" / "before_and_after.png").is_file()
    assert not (run.path / "plots" / "trajectories.png").exists()
    run.stored.close()


def test_samples_are_not_read_from_it():
    assert file_key("initial_u_untrained", "untrained") is None
    assert file_key("initial_u", "reference") == "initial.u"


def test_the_role_is_known():
    assert Variable("u_untrained", (), "u before training", role="untrained").role == "untrained"
