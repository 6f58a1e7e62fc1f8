"""Mistakes that users make: each is told with file, line, column, key path and what was expected."""

from __future__ import annotations

import pytest
import scenario_fakes

from toolkit.core.errors import MissingError, ScenarioError
from toolkit.scenario.load import load_scenario

LBFGS = ("{type: adam, learning_rate: 1e-3}", "{type: lbfgs}")

KEYS = [
    # unknown and misspelt keys
    ([("learning_rate", "lr")], "14:27: update.optimizer.lr: unknown key; known: type"),
    ([("optimizer:", "optimiser:")], "14:3: update.optimiser: unknown key; did you mean 'optimizer'?"),
    ([("time:", "tme:")], "4:1: tme: unknown key; did you mean 'time'?"),
    ([("diffusivity", "difusivity")], "3:19: pde.difusivity: unknown key; did you mean 'diffusivity'?"),
    ([("levels: 2", "level: 2")], "9:28: networks.estimator.level: unknown key; did you mean 'levels'?"),
    ([("steps: 5", "<<: {a: 1}, steps: 5")], "15:9: train: merge keys are not YAML 1.2"),
    # wrong types
    (
        [("steps: 2", "steps: two")],
        "4:15: time.steps: expected an integer or arithmetic such as 2*pi/64, got 'two'",
    ),
    ([("steps: 2", "steps: 2.5")], "4:15: time.steps: expected an integer, got 2.5"),
    ([("steps: 2", "steps: true")], "4:15: time.steps: expected an integer, got true"),
    ([("steps: 2", "steps: [2]")], "4:15: time.steps: expected an integer, got [2]"),
    ([("{steps: 2, dt: 0.5}", "7")], "4:7: time: expected a mapping of keys, got 7"),
    ([("dt: 0.5", "dt: .inf")], "4:22: time.dt: expected a finite number, got inf"),
    ([("seed: 1", "seed: null")], "7:59: data.seed: expected an integer, got null"),
    ([("train: infinite", "train: infinit")], "did you mean 'infinite'?"),
    (
        [("train: {", "run: {precision: {physics: f64, netwrk: float32}}\ntrain: {")],
        "15:28: run.precision.physics: expected 'float32' or 'float64', got 'f64'",
    ),
    (
        [("train: {", "run: {precision: {netwrk: float32}}\ntrain: {")],
        "15:19: run.precision.netwrk: unknown key; did",
    ),
    # values out of range
    ([("x: 16", "x: -16")], "2:19: grid.cells.x: expected a number > 0, got -16"),
    ([("x: 16", "x: 1/32")], "2:19: grid.cells.x: expected an integer, got '1/32'"),
    ([("dt: 0.5", "dt: 0")], "4:22: time.dt: expected a number > 0, got 0"),
    ([("1/32", "-1/32")], "3:32: pde.diffusivity: expected a number > 0, got '-1/32'"),
    # arithmetic
    (
        [("2*pi", "2*tau")],
        "2:42: grid.extent.x: expected a number or arithmetic such as 2*pi/64, got '2*tau': not arithmetic: "
        "unknown name 'tau' (pi, e and sqrt are known)",
    ),
    ([("1/32", "1/0")], "3:32: pde.diffusivity: expected a number or arithmetic such as 2*pi/64, got '1/0'"),
    ([("1/32", "__import__('os').getcwd()")], "got \"__import__('os').getcwd()\": not arithmetic"),
    # plugins that are not there
    ([("type: warm", "type: wram")], "3:13: pde.type: no PDE 'wram'; did you mean 'warm'?"),
    ([("type: warm", "type: maxwell")], "3:13: pde.type: no PDE 'maxwell'; known: broken, cold, warm"),
    (
        [("type: u_net", "type: unet")],
        "9:21: networks.estimator.type: no network 'unet'; did you mean 'u_net'?",
    ),
    ([("type: bumps", "type: bump")], "7:14: data.type: no sampler 'bump'; did you mean 'bumps'?"),
    ([("type: l2", "type: l3")], "10:14: loss.type: no loss 'l3'; known: l1, l2, mean"),
    ([("type: sip", "type: spi")], "12:9: update.type: no update rule 'spi'; did you mean 'sip'?"),
    (
        [("type: adam", "type: adams")],
        "14:21: update.optimizer.type: no optimizer 'adams'; did you mean 'adam'?",
    ),
    (
        [("spectral", "spectrl")],
        "13:19: update.inverse_solver.type: no inverse solver 'spectrl'; did you mean",
    ),
    # missing keys
    (
        [("pde: {type: warm, diffusivity: 1/32}\n", "")],
        "1:1: pde: required key is missing; PDEs: broken, cold, warm",
    ),
    ([("name: warm\n", "")], "1:1: name: required key is missing"),
    ([(", diffusivity: 1/32", "")], "3:1: pde.diffusivity: required key is missing"),
    (
        [("{type: warm, diffusivity: 1/32}", "{diffusivity: 1}")],
        "3:1: pde.type: required key is missing; PDEs:",
    ),
    # text that is not plain data
    ([("name: warm", "name: warm\nname: cold")], "2:1: name: duplicate key; the first one is in line 1"),
    (
        [("1/32", "!!python/object/apply:os.getcwd []")],
        "3:32: pde.diffusivity: tag '!!python/object/apply:os",
    ),
    (
        [("name: warm", "description: &a [&b [x, x], *b]\nname: warm")],
        "1:14: description: expected text, got [['x', 'x'], ['x', 'x']]",
    ),
    # the name of the file
    ([("name: warm", "name: heat")], "1:7: name: expected 'warm', the name of the file, got 'heat'"),
]

FITS = [
    # sip and its inverse solver
    (
        [("  inverse_solver: spectral\n", "")],
        "11:1: update.inverse_solver: update rule 'sip' needs an inverse_solver; for PDE 'warm': descent",
    ),
    (
        [("on: final.u", "on: trajectory.u")],
        "inverse solver 'spectral' inverts final.u, not trajectory.u; others: descent",
    ),
    (
        [("initial.u", "force.u")],
        "13:19: update.inverse_solver.type: inverse solver 'spectral' finds initial.u, not force.u",
    ),
    (
        [("periodic", "zero")],
        "inverse solver 'spectral' needs boundaries periodic, not zero; others: descent",
    ),
    (
        [("train: {", "run: {precision: float32}\ntrain: {")],
        "15:18: run.precision: inverse solver 'spectral' needs float64",
    ),
    (
        [("type: l2", "type: l1")],
        "10:14: loss.type: loss 'l1' has no Newton step in y, which inverse solver 'spectral'",
    ),
    # lbfgs
    (
        [LBFGS],
        "14:21: update.optimizer.type: lbfgs searches along a line for the minimum of a function, but the "
        "direction of 'sip' is not the gradient of one; use adadelta, adagrad, adam, adamw, rmsprop, sgd",
    ),
    (
        [LBFGS, ("type: sip\n  inverse_solver: spectral", "type: dp")],
        "13:21: update.optimizer.type: lbfgs compares steps on one batch",
    ),
    (
        [LBFGS, ("{type: lbfgs}", "{type: lbfgs, learning_rate: 1}")],
        "update.optimizer.learning_rate: unknown key",
    ),
    ([("{type: adam", "{type: sgd, nesterov: true")], "14:36: update.optimizer.nesterov: needs momentum"),
    # the grid
    (
        [("grid: {cells: {x: 16, y: 8}, extent: {x: 2*pi, y: 4}, boundary: periodic}\n", "")],
        "PDE 'warm' needs a grid in 1 or 2",
    ),
    (
        [("y: 8", "y: 8, z: 8"), ("y: 4", "y: 4, z: 4")],
        "2:15: grid.cells: PDE 'warm' runs in 1 or 2 dimensions, the grid has 3",
    ),
    (
        [("periodic", "zero_gradient")],
        "2:65: grid.boundary: PDE 'warm' takes the boundaries periodic, zero, not zero_gradient",
    ),
    ([("periodic", "0.5")], "grid.boundary: PDE 'warm' takes the boundaries periodic, zero, not value"),
    (
        [("periodic", "{x-: zero}")],
        "2:65: grid.boundary: axis x: periodic on one side only (x-: zero, x+: periodic)",
    ),
    ([("periodic", "{x: zero, w: zero}")], "2:75: grid.boundary.w: unknown key"),
    ([("periodic", "perodic")], "2:65: grid.boundary: expected 'periodic', 'zero' or 'zero_gradient'"),
    ([("y: 8", "z: 8")], "a grid in 2 dimensions has the axes x, y"),
    # controls, networks, loss, output
    (
        [("initial.u", "initial.v")],
        "6:20: controls.start.acts_on: PDE 'warm' has no 'initial.v'; places that accept initial: u",
    ),
    ([("initial.u", "source.u")], "places that accept source: none"),
    (
        [("initial.u", "parameter.nu")],
        "PDE 'warm' has no 'parameter.nu'; parameters that can be controls: coupling, diffusivity",
    ),
    ([("initial.u", "u")], "6:20: controls.start.acts_on: expected initial.<field>, force.<field>"),
    (
        [("output: start", "output: stat")],
        "9:74: networks.estimator.output: no control 'stat'; did you mean 'start'?",
    ),
    (
        [("initial.u}", "initial.u, initial: 0}")],
        "6:40: controls.start.initial: network 'estimator' gives this control",
    ),
    (
        [("initial.u}", "initial.u}\n  other: {acts_on: force.u}")],
        "7:3: controls.other: nothing gives this control",
    ),
    (
        [("initial.u}", "initial.u}\n  other: {acts_on: initial.u, initial: 0}")],
        "initial.u is already controls.start",
    ),
    ([("final.u", "final.v")], "10:22: loss.on: PDE 'warm' has no field 'v'; known: u"),
    ([("levels: 2", "levels: 5")], "9:3: networks.estimator: network 'u_net': "),
    (
        [("input: target", "input: state")],
        "9:58: networks.estimator.input: only a network with `every_step: true`",
    ),
    (
        [("input: target", "every_step: true")],
        "networks.estimator.every_step: a network in the loop gives forces",
    ),
    (
        [("input: target", "input: state, every_step: true"), ("initial.u", "force.u")],
        "networks.estimator.every_step: a network in the loop cannot normalise by batches",
    ),
    (
        [("train: {", "output: {fields: [u, strat]}\ntrain: {")],
        "15:22: output.fields.1: no field or control 'strat'; did you",
    ),
    # data and rule
    (
        [("data: {type: bumps, train: infinite, validation: 4, seed: 1}\n", "")],
        "9:1: loss: loss 'l2' compares with a target; give",
    ),
    ([("type: bumps", "type: bumps, width: 9")], "7:28: data.width: a bump is wider than the grid"),
    (
        [("train: infinite", "train: 3")],
        "15:31: train.batch_size: a batch of 4 needs more than the 3 samples",
    ),
    (
        [("type: bumps", "type: file, path: none.nc"), ("train: infinite, ", "")],
        "7:26: data.path: no such file: ",
    ),
    (
        [("type: sip\n  inverse_solver: spectral", "type: supervised"), ("type: bumps", "type: targets")],
        "12:9: update.type: update rule 'supervised' needs the true control initial.u; sampler 'targets'",
    ),
    (
        [("type: sip\n  inverse_solver: spectral", "type: loop")],
        "update rule 'loop' needs a network in the loop",
    ),
    ([("dt: 0.5", "dt: 4000")], "4:22: time.dt: diffusion number is 810.6, its limit is 100; change time.dt"),
    ([("loss: {type: l2, on: final.u}\n", "")], "loss: required key is missing; losses: l1, l2, mean"),
]


@pytest.mark.parametrize(("changes", "expected"), KEYS + FITS)
def test_a_broken_scenario_is_told_with_position_key_and_expectation(write, changes, expected):
    path = write(*changes)

    with pytest.raises(ScenarioError) as error:
        load_scenario(path)

    assert any(expected in problem for problem in error.value.problems), str(error.value)
    assert all(problem.startswith(f"{path}:") for problem in error.value.problems)


def test_all_mistakes_of_a_file_are_told_at_once_in_their_order(write):
    path = write(
        ("x: 16", "x: -1"),
        ("diffusivity", "difusivity"),
        ("l2", "l9"),
        ("spectral", "spectrl"),
        ("learning_rate", "lr"),
    )

    with pytest.raises(ScenarioError) as error:
        load_scenario(path)

    lines = [int(problem.removeprefix(f"{path}:").split(":")[0]) for problem in error.value.problems]
    assert lines == [2, 3, 10, 13, 14]


def test_a_misspelt_required_key_is_one_mistake(write):
    with pytest.raises(ScenarioError) as error:
        load_scenario(write(("diffusivity", "difusivity")))

    assert len(error.value.problems) == 1


def test_an_ode_takes_no_grid_and_has_no_solver_of_its_own(tmp_path):
    path = tmp_path / "cold.yaml"
    path.write_text("name: cold\npde: cold\ngrid: {cells: {x: 4}}\n")
    with pytest.raises(ScenarioError, match=r"cold\.yaml:3:1: grid: PDE 'cold' is an ODE and takes no grid"):
        load_scenario(path)

    path.write_text("name: cold\npde: cold\nloss: mean\n")
    with pytest.raises(ScenarioError, match=r"cold\.yaml:3:1: loss\.on: required key is missing.*fields: p, q"):
        load_scenario(path)


def test_a_rule_without_any_inverse_solver_names_pdes_that_have_one(tmp_path, monkeypatch):
    monkeypatch.setitem(scenario_fakes.POINTS, "inverse_solvers", {})
    path = tmp_path / "cold.yaml"
    path.write_text("name: cold\npde: cold\nupdate: sip\n")

    with pytest.raises(ScenarioError, match=r"3:1: .*PDE 'cold' has none; PDEs that do: warm \(spectral\)"):
        load_scenario(path)


def test_a_plugin_that_does_not_import_is_missing(write):
    with pytest.raises(MissingError, match=r"warm\.yaml:3: pde\.type: plugin 'broken' .* failed to import"):
        load_scenario(write(("type: warm", "type: broken")))


def test_a_solver_for_other_pdes_is_not_offered(write):
    with pytest.raises(ScenarioError, match="no inverse solver 'elsewhere'; known: descent, spectral"):
        load_scenario(write(("spectral", "elsewhere")))
