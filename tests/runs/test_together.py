"""Cells that differ in their seed alone, side by side: the numbers of each are those that it has alone, bit for bit."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

import pytest
from batch_cases import PARABOLA, assert_same_results, members, statuses
from whole_runs import DIRECT, HEAT, cli, finished, process, recorded_steps, status, write_scenario

import toolkit
from toolkit.core.errors import Interrupted, StorageError
from toolkit.runs import execute, together, work
from toolkit.runs.directory import create, create_cell
from toolkit.runs.events import Events
from toolkit.runs.execute import run_sweep
from toolkit.runs.metrics import MetricsWriter
from toolkit.scenario.sweep import expand
from toolkit.training.data import InfiniteBatches
from toolkit.training.joint import JointTrainer

SINE = """\
name: sine
description: Preimages under a scaled, rotated sine.
pde: {type: sine, xi: 4, phi: 45}
controls:
  preimage: {acts_on: initial.x}
data: {type: uniform, reference: false, train: infinite, validation: 6, seed: 1}
networks:
  estimator: {type: mlp, layers: [8], activation: relu, input: target, output: preimage}
loss: {type: l2, on: final.y}
update:
  type: sip
  inverse_solver: {type: analytic_newton, max_loss_change: 0.2}
  proxy: l1
  optimizer: {type: adam, learning_rate: 1e-3}
train: {steps: 16, batch_size: 5, validate_every: 6, checkpoint_every: 6}
run: {backend: jax, device: cpu, precision: {physics: float64, network: float32}}
output: {plots: false}
sweep: {run.seed: [0, 1, 2]}
"""
JAX = ("run: {backend: torch", "run: {backend: jax")
SEEDS = ("plots: false}\n", "plots: false}\nsweep: {run.seed: [0, 1, 2]}\n")
LONGER = ("steps: 4", "steps: 14")
NORMALISED = ("{type: conv_net, layers: [3]", "{type: conv_net, layers: [3], batch_norm: true")
FRAMES = ("output: {plots", "output: {every: 3, plots")
ROUNDS = "a common program would round the numbers of the seeds otherwise"
FINITE = ("train: infinite", "train: 13")
"""Shuffled by each run's own seed: every run has its own batches."""


@pytest.fixture
def always(monkeypatch):
    """Go side by side however little there is to win."""
    monkeypatch.setattr(together, "SHORT_SECONDS", 1e9)
    monkeypatch.setattr(together, "WON", -1.0)
    monkeypatch.setattr(together, "WORTH", 1e9)


def both(tmp_path, path):
    """(sweep alone, sweep together, what was said meanwhile)."""
    scenario, said = toolkit.load_scenario(path), []
    alone = run_sweep(scenario, tmp_path, "alone")
    side_by_side = run_sweep(scenario, tmp_path, "together", Events(said.append), together=True)
    return alone, side_by_side, said


def assert_same(one, other):
    """All members of two sweeps have the same results."""
    there = members(other)
    assert set(members(one)) == set(there)
    for name, path in members(one).items():
        assert_same_results(path, there[name])


def joint(said):
    """How many runs went side by side, once per group."""
    return [int(text.split()[0]) for text in said if "side by side:" in text]


def counted(sweep):
    """How many updates the members have made together."""
    return {status(run)["details"].get("updates_together") for run in members(sweep).values()}


def scenario_steps(sweep):
    """`train.steps` of a sweep."""
    return toolkit.load_scenario(sweep / "scenario.yaml").sections.train.steps


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        pytest.param(SINE, (), id="the same batches for all"),
        pytest.param(SINE, (FINITE,), id="batches of their own"),
        pytest.param(HEAT, (JAX, SEEDS, LONGER, NORMALISED), id="running statistics"),
        pytest.param(DIRECT, (JAX, SEEDS, LONGER, FRAMES), id="frames of a direct optimisation"),
    ],
)
def test_each_has_the_numbers_it_has_alone(tmp_path, always, text, changes):
    alone, sweep, said = both(tmp_path, write_scenario(tmp_path, text, *changes))
    assert sweep.done == alone.done
    assert len(sweep.done) == 3
    assert_same(alone.path, sweep.path)
    assert counted(alone.path) == {None}
    # As it usually optimises, XLA rounds convolutions otherwise in a loop; as the tests have it optimise, it does not.
    if "conv_net" not in text or ROUNDS not in said:
        assert joint(said) == [3]
        assert counted(sweep.path) == {scenario_steps(sweep.path) - together.ALONE - together.BOTH_WAYS}


def test_only_cells_that_differ_in_their_seed_are_grouped(tmp_path, always):
    axes = ("sweep: {run.seed: [0, 1, 2]}", "sweep: {run.seed: [0, 1], pde.xi: [2, 4], data.seed: [1, 2]}")
    path = write_scenario(tmp_path, SINE, axes, ("steps: 16", "steps: 12"))
    said = []
    sweep = run_sweep(toolkit.load_scenario(path), tmp_path, "it", Events(said.append), together=True)
    assert joint(said) == [2] * 4
    assert len(sweep.done) == 8
    with toolkit.open_sweep(sweep.path) as ds:
        assert not ds.train_loss.isel(step=slice(1, None)).isnull().any()


def test_a_run_that_fails_costs_nothing_but_itself(tmp_path, always, monkeypatch):
    path = write_scenario(tmp_path, SINE)
    original = MetricsWriter.append

    def broken(self, record):
        if "seed=1" in str(self._path) and record["step"] == 12:
            raise StorageError("the disk of this one has a hole")
        original(self, record)

    alone = run_sweep(toolkit.load_scenario(path), tmp_path, "alone")
    monkeypatch.setattr(MetricsWriter, "append", broken)
    sweep = run_sweep(toolkit.load_scenario(path), tmp_path, "together", together=True)
    (failed,) = sweep.failed
    assert failed.startswith("seed=1")
    assert sweep.failed[failed] == "the disk of this one has a hole"
    found = members(sweep.path)
    assert status(found[failed])["status"] == "failed"
    for name, run in members(alone.path).items():
        if name != failed:
            assert_same_results(run, found[name])


def test_numbers_that_are_not_finite_are_explained_by_the_run_itself(tmp_path, always):
    """All three diverge, side by side by then: each says at which step, and what to do."""
    # Just above the largest rate that converges from (3, 3): x grows, and then like its cube.
    rare = ("steps: 4, validate_every: 2", "steps: 20, validate_every: 20")
    changes = (JAX, SEEDS, rare, ("rate: 0.01", "rate: 0.05556"))
    alone, sweep, said = both(tmp_path, write_scenario(tmp_path, PARABOLA, *changes))
    assert joint(said) == [3]
    assert len(sweep.failed) == 3
    assert sweep.failed == alone.failed
    assert all(reason.startswith("step 12: ") and "lower" in reason.lower() for reason in sweep.failed.values())


def test_a_run_may_make_one_update_alone(tmp_path, always, monkeypatch):
    original = JointTrainer._made

    def without_one(self, step, k, *rest):
        return None if (step, k) == (12, 1) else original(self, step, k, *rest)

    monkeypatch.setattr(JointTrainer, "_made", without_one)
    alone, sweep, _ = both(tmp_path, write_scenario(tmp_path, SINE))
    assert_same(alone.path, sweep.path)


def test_where_it_would_round_otherwise_each_goes_on_alone(tmp_path, always, monkeypatch):
    monkeypatch.setattr(together, "equal", lambda *states: False)
    alone, sweep, said = both(tmp_path, write_scenario(tmp_path, SINE))
    assert said.count(ROUNDS) == 1
    assert "the seeds go on alone" in said
    assert joint(said) == []
    assert_same(alone.path, sweep.path)


def test_without_a_common_program_each_goes_on_alone(tmp_path, always, monkeypatch):
    def broken(self, *arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(JointTrainer, "step", broken)
    alone, sweep, said = both(tmp_path, write_scenario(tmp_path, SINE))
    assert "no update of all seeds at once, they go on alone: RuntimeError: RESOURCE_EXHAUSTED: out of memory" in said
    assert_same(alone.path, sweep.path)


def test_a_signal_between_two_seeds_begins_no_other(tmp_path):
    scenario = toolkit.load_scenario(write_scenario(tmp_path, HEAT, SEEDS))
    directory = create(tmp_path, "heat", "hash", "it")
    cells = [(cell.cell_id, create_cell(directory.path, cell.cell_id), cell.scenario) for cell in expand(scenario)]
    group = together.Group(
        [together.Member(*cell) for cell in cells],
        Events(),
        ("test",),
        ends=lambda member: os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(Interrupted, match=r"stopped; `phinverse resume .*/it` goes on") as caught:
        group.run()
    assert caught.value.exit_code == 75
    assert statuses(tmp_path / "heat") == ["done"]


def test_an_error_in_what_all_share_is_each_ones_own(tmp_path, always, monkeypatch):
    """A sampler that fails at update 12 of one cell: alone or together, the other cell is done."""
    axes = ("sweep: {run.seed: [0, 1, 2]}", "sweep: {pde.xi: [2, 4], run.seed: [0, 1]}")
    scenario = toolkit.load_scenario(write_scenario(tmp_path, SINE, axes))
    original = InfiniteBatches.__call__

    def broken(self, step):
        xi = self.assemble.problem.parameters.xi
        if step == 11 and xi == 2:
            raise ZeroDivisionError("a bug in a sampler")
        return original(self, step)

    monkeypatch.setattr(InfiniteBatches, "__call__", broken)
    sweeps = [run_sweep(scenario, tmp_path, str(both), together=both) for both in (False, True)]
    assert sweeps[0].failed == sweeps[1].failed
    assert list(sweeps[1].failed.values()) == ["ZeroDivisionError: a bug in a sampler"] * 2
    assert sweeps[0].done == sweeps[1].done
    assert len(sweeps[1].done) == 2


def test_what_another_process_has_begun_is_left_to_it(tmp_path, always):
    path = write_scenario(tmp_path, SINE)
    scenario, began = toolkit.load_scenario(path), {}

    def others(text):
        # While the first seed begins, somebody resumes the sweep and has done the second.
        if text.startswith("cell 1 of 3") and not began:
            directory = next((tmp_path / "sine").glob("together"))
            second = next(cell for cell in expand(scenario) if cell.labels["run.seed"] == 1)
            member = create_cell(directory, second.cell_id)
            execute.complete(member.path, second.scenario)
            began[member.path] = status(member.path)["started"]

    sweep = run_sweep(scenario, tmp_path, "together", Events(others), together=True)
    assert len(sweep.done) == 3
    ((done, started),) = began.items()
    assert status(done)["started"] == started, "it was not begun anew"
    assert counted(sweep.path) == {None, 7}


def test_compilation_is_counted_once(tmp_path, always):
    scenario = toolkit.load_scenario(write_scenario(tmp_path, SINE))
    backends = []
    original = work.environment

    @contextmanager
    def kept(*arguments):
        with original(*arguments) as (backend, stop):
            backends.append(backend)
            yield backend, stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "environment", kept)
        sweep = run_sweep(scenario, tmp_path, "it", together=True)
    (backend,) = backends
    with toolkit.open_sweep(sweep.path) as ds:
        assert float(ds.compile_seconds.sum()) == pytest.approx(backend.trace_seconds, rel=1e-3)


def test_after_a_request_to_stop_no_other_seed_is_begun(tmp_path, always):
    scenario, began = toolkit.load_scenario(write_scenario(tmp_path, SINE)), []

    def stopping(text):
        began.extend([text] if text.startswith("cell") else [])
        if text.startswith("cell 2 of 3"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_sweep(scenario, tmp_path, "it", Events(stopping), together=True)
    assert len(began) == 2
    assert statuses(tmp_path / "sine") == ["interrupted"] * 2


def test_where_it_is_slower_each_goes_on_alone(tmp_path, always, monkeypatch):
    monkeypatch.setattr(together, "WORTH", 0.0)
    alone, sweep, said = both(tmp_path, write_scenario(tmp_path, SINE, ("steps: 16", "steps: 32")))
    assert "side by side is slower here: the seeds go on alone" in said
    assert_same(alone.path, sweep.path)


@pytest.mark.parametrize(
    "change", [("backend: jax", "backend: torch"), ("steps: 16,", "time_limit: 0.05, steps: null,")]
)
def test_torch_and_time_limits_stay_alone(tmp_path, always, change):
    path = write_scenario(tmp_path, SINE, change)
    result = cli("run", path, "--together", "--out", tmp_path, "--name", "it")
    assert result.exit_code == 0, result.stderr
    assert "side by side:" not in result.stderr
    assert statuses(tmp_path / "sine") == ["done"] * 3


def test_a_scenario_without_a_sweep_has_nothing_to_put_together(tmp_path):
    result = cli("run", write_scenario(tmp_path, HEAT), "--together", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "heat.yaml has no sweep; add one over run.seed" in result.stderr
    assert not (tmp_path / "out").exists()


def test_long_updates_and_short_runs_are_not_tried(tmp_path, monkeypatch):
    path = write_scenario(tmp_path, SINE, ("run.seed: [0, 1, 2]", "run.seed: [0, 1]"))
    _, sweep, said = both(tmp_path, path)
    # 16 updates of a millisecond are less than the compilation of a second program.
    assert joint(said) == []
    assert len(sweep.done) == 2
    with toolkit.open_sweep(sweep.path) as ds:
        first, second = ds.compile_seconds.values
    # What the first has compiled, the second has not compiled again.
    assert second < first / 4


def test_a_signal_checkpoints_all_of_them(tmp_path):
    path = write_scenario(tmp_path, SINE, ("steps: 16", "steps: 100000"), ("_every: 6, ", "_every: 100000, "))
    running = process("run", path, "--together", "--out", tmp_path, "--name", "it")
    for line in running.stderr or ():
        if "3 runs side by side" in line:
            break
    runs = members(tmp_path / "sine" / "it")
    while max(max(recorded_steps(run)) for run in runs.values()) < 50:
        assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    code, _, err = finished(running)
    assert code == 75, err
    assert statuses(tmp_path / "sine") == ["interrupted"] * 3
    for run in runs.values():
        assert f"step {max(recorded_steps(run))} is saved" in status(run)["reason"]
