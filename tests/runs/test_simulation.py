"""Plain simulations: frames where they belong, exact in time, monitored, streamed."""

from __future__ import annotations

import numpy as np
import pytest
from whole_runs import BACKENDS, WAVE, assert_compliant, cli, execute, files, status, write_scenario

from toolkit.core.errors import DivergenceError, ScenarioError


def cosine(t: np.ndarray) -> np.ndarray:
    """The exact solution (t, x, y) of one wave per axis with diffusivity 8 on a box of edge 64."""
    k = 2 * np.pi / 64
    wave = np.cos(k * 8 * (np.arange(8) + 0.5))
    return np.exp(-2 * 8.0 * k**2 * t)[:, None, None] * wave[:, None] * wave[None, :]


@pytest.mark.parametrize("name", BACKENDS)
def test_frames_are_the_exact_solution_at_their_times(tmp_path, name):
    run = execute(write_scenario(tmp_path, WAVE), tmp_path, {"run.backend": name})
    with run.stored:
        temperature = run.fields.temperature
        assert temperature.dims == ("sample", "t", "x", "y")
        assert temperature.attrs["units"] == "K"
        np.testing.assert_array_equal(run.fields.t, 0.5 * np.arange(7))
        # The step is exact in Fourier space: six steps of rounding.
        for sample in range(2):
            np.testing.assert_allclose(temperature[sample], cosine(run.fields.t.values), rtol=0, atol=1e-13)
        assert run.network == {}
        np.testing.assert_array_equal(run.metrics.step, np.arange(7))
        assert (run.metrics.mean_drift < 1e-12).all()
        assert "compile_seconds" in run.metrics.attrs


def test_every_leaves_out_frames_but_neither_start_nor_end(tmp_path):
    run = execute(write_scenario(tmp_path, WAVE), tmp_path, {"output.every": 4, "output.samples": 1})
    with run.stored:
        np.testing.assert_array_equal(run.fields.t, [0.0, 2.0, 3.0])
        np.testing.assert_array_equal(run.metrics.step, [0, 4, 6])
        assert run.fields.sizes["sample"] == 1
        np.testing.assert_allclose(run.fields.temperature[0], cosine(run.fields.t.values), rtol=0, atol=1e-13)


def test_without_data_the_state_starts_at_rest_and_has_no_samples(tmp_path):
    path = write_scenario(tmp_path, WAVE, ("data: {type: cosine, validation: 2}\n", ""))
    run = execute(path, tmp_path)
    with run.stored:
        assert run.fields.temperature.dims == ("t", "x", "y")
        assert (run.fields.temperature == 0).all()


def test_it_leaves_the_files_of_a_run_and_a_picture(tmp_path):
    run = execute(write_scenario(tmp_path, WAVE), tmp_path, {"output.plots": True})
    run.stored.close()
    found = {name for name in files(run.path) if not name.startswith("checkpoint/arrays")}
    assert found == {
        *("scenario.yaml", "run.json", "metrics.jsonl", "metrics.nc", "fields.nc", "plots/simulation.png"),
        *("checkpoint/state.json", "checkpoint/previous.json"),
    }


def test_a_broken_monitor_fails_the_run_and_names_the_key(tmp_path, monkeypatch):
    from toolkit.runs import monitors

    measure = monitors.measure
    monkeypatch.setattr(monitors, "measure", lambda *given: {**measure(*given), "mean_drift": np.asarray(0.5)})
    path = write_scenario(tmp_path, WAVE)
    with pytest.raises(DivergenceError, match=r"time step 0: relative drift .* is 0\.5, the limit is 0\.0001; change"):
        execute(path, tmp_path)
    assert status(tmp_path / "wave" / "it")["status"] == "failed"


@pytest.mark.parametrize("name", BACKENDS)
def test_values_that_are_not_finite_fail_the_run_but_keep_what_was_written(tmp_path, monkeypatch, name):
    from plugins import heat

    step = heat.Heat.step

    def explodes(self, state, inputs, t, dt):
        after = step(self, state, inputs, t, dt)
        return {"temperature": after["temperature"] * 1e200}

    monkeypatch.setattr(heat.Heat, "step", explodes)
    path = write_scenario(tmp_path, WAVE)
    result = cli("run", path, "--backend", name, "--out", tmp_path, "--name", "it")
    assert result.exit_code == 1
    run = tmp_path / "wave" / "it"
    assert "time.dt" in status(run)["reason"] or "run.precision" in status(run)["reason"]
    assert status(run)["status"] == "failed"
    assert {"fields.nc", "metrics.nc"} <= files(run)


def test_a_run_is_made_by_run_and_a_sweep_by_run_sweep(tmp_path):
    path = write_scenario(tmp_path, WAVE, ("output:", "sweep: {time.dt: [0.1, 0.2]}\noutput:"))
    with pytest.raises(ScenarioError, match="run_sweep"):
        execute(path, tmp_path)
    assert files(tmp_path) == {"wave.yaml"}


def test_the_public_checker_finds_no_fault(tmp_path):
    run = execute(write_scenario(tmp_path, WAVE), tmp_path)
    run.stored.close()
    assert_compliant(run.path)
