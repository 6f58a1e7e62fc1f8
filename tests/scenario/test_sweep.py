"""Sweeps: products of axes, labels, cells that are checked like files."""

from __future__ import annotations

import pytest

from toolkit.core.errors import ScenarioError
from toolkit.scenario.load import load_scenario
from toolkit.scenario.sweep import MAX_CELLS, expand

SWEEP = """\
sweep:
  run.seed: [0, 1, 2]
  rule:
    sip: {}
    adam: {update: {type: dp, optimizer: {type: adam, learning_rate: 2e-3}}}
    sgd: {update.type: dp, update.optimizer: sgd}
train: {"""


@pytest.fixture
def swept(write):
    return lambda: write(("train: {", SWEEP))


def test_axes_multiply_and_the_last_varies_fastest(swept):
    cells = expand(load_scenario(swept()))

    assert [tuple(cell.labels.values()) for cell in cells] == [
        (seed, rule) for seed in (0, 1, 2) for rule in ("sip", "adam", "sgd")
    ]
    assert [cell.scenario.data["run"]["seed"] for cell in cells[::3]] == [0, 1, 2]
    assert [cell.scenario.data["update"]["type"] for cell in cells[:3]] == ["sip", "dp", "dp"]
    assert [cell.scenario.data["update"]["optimizer"]["type"] for cell in cells[:3]] == [
        "adam",
        "adam",
        "sgd",
    ]
    assert all("sweep" not in cell.scenario.data for cell in cells)


def test_cells_have_readable_distinct_names_that_do_not_depend_on_the_sweep(swept):
    scenario = load_scenario(swept())
    cells = expand(scenario)
    smaller = expand(load_scenario(swept(), ["sweep.run.seed=[0]"]))

    names = [cell.cell_id for cell in cells]
    assert len(set(names)) == 9
    assert names[0].startswith("seed=0-rule=sip-")
    assert [cell.cell_id for cell in smaller] == names[:3]


def test_the_resolved_cell_runs_as_it_is(swept, tmp_path):
    cell = expand(load_scenario(swept()))[4].scenario
    copy = tmp_path / "scenario.yaml"
    copy.write_text(cell.to_yaml())

    assert load_scenario(copy).content_hash() == cell.content_hash()


def test_a_scenario_without_sweep_is_its_only_cell(write):
    scenario = load_scenario(write())
    (cell,) = expand(scenario)

    assert cell.scenario is scenario
    assert cell.labels == {}


def test_an_axis_over_the_word_keeps_what_all_rules_share(write):
    path = write(("train: {", "sweep: {update.type: [sip, dp]}\ntrain: {"))
    cells = expand(load_scenario(path))

    assert [cell.scenario.data["update"]["optimizer"]["learning_rate"] for cell in cells] == [1e-3, 1e-3]


def test_the_base_need_not_fit_together_if_every_cell_does(write):
    path = write(("{type: l2", "{type: l1"))
    with pytest.raises(ScenarioError, match="no Newton step"):
        load_scenario(path)

    path.write_text(path.read_text() + "sweep: {rule: {a: {update.inverse_solver: descent}, b: {update: dp}}}\n")
    assert len(expand(load_scenario(path))) == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("run.seed: [0, 1, 2]", "run.sed: [0, 1]", ":16:13: run.sed: unknown key; did you mean 'seed'?"),
        ("run.seed: [0, 1, 2]", "run.seed: [0, x]", ":16:17: run.seed: expected an integer"),
        (
            "run.seed: [0, 1, 2]",
            "rn.seed: [0, 1]",
            ":16:3: sweep.rn.seed: an axis with a list is a dotted key",
        ),
        (
            "run.seed: [0, 1, 2]",
            "run.seed: []",
            ":16:3: sweep.run.seed: expected a list of values or labelled",
        ),
        (
            "run.seed: [0, 1, 2]",
            "run.seed: 3",
            ":16:3: sweep.run.seed: expected a list of values or labelled",
        ),
        ("sip: {}", "sip: 3", ":18:10: sweep.rule.sip: expected a mapping of overrides, got 3"),
        (
            "{update: {type: dp",
            "{update: {type: dpp",
            ":19:27: update.type: no update rule 'dpp'; did you mean 'dp'?",
        ),
        ("2e-3", "fast", ":19:70: update.optimizer.learning_rate: expected a number or arithmetic"),
    ],
)
def test_findings_point_at_the_line_of_the_sweep(swept, old, new, expected):
    path = swept()
    path.write_text(path.read_text().replace(old, new))

    with pytest.raises(ScenarioError) as error:
        load_scenario(path)

    assert any(expected in problem for problem in error.value.problems), str(error.value)


def test_a_combination_that_does_not_fit_names_its_cell(swept):
    path = swept()
    path.write_text(path.read_text().replace("{type: l2", "{type: l1"))

    with pytest.raises(ScenarioError, match=r"no Newton step .* \(sweep cell run\.seed=0, rule=sip and 2 more\)"):
        load_scenario(path)


def test_too_many_cells_are_refused_before_they_are_made(write):
    values = list(range(MAX_CELLS // 2 + 1))
    path = write(("train: {", f"sweep: {{run.seed: {values}, time.dt: [1/2, 1/4]}}\ntrain: {{"))

    with pytest.raises(ScenarioError, match="multiply to 10002 cells"):
        load_scenario(path)
