"""Arithmetic that names other keys: `learning_rate: 1e-2/pde.diffusivity`, and what it must not do."""

from __future__ import annotations

import re
import time

import pytest

from toolkit.core.errors import ScenarioError
from toolkit.scenario.json_schema import ARITHMETIC
from toolkit.scenario.load import load_scenario, scenario_from_text
from toolkit.scenario.references import MAX_CHAIN, References
from toolkit.scenario.sweep import expand
from toolkit.scenario.yaml_loader import read_text

RATE = "learning_rate: 1e-3"


def references(text):
    return References(read_text(text, "x.yaml"))


def rate(scenario):
    return scenario.data["update"]["optimizer"]["learning_rate"]


def test_a_key_stands_for_its_number(write):
    scenario = load_scenario(write((RATE, "learning_rate: 1e-2/pde.diffusivity**2/train.batch_size")))

    # The same operations in the same order: no tolerance is needed.
    assert rate(scenario) == 1e-2 / (1 / 32) ** 2 / 4
    assert "learning_rate: 2.56" in scenario.to_yaml()


def test_integers_stay_integers(write):
    assert load_scenario(write(("steps: 5", "steps: 2*train.batch_size"))).data["train"]["steps"] == 8


def test_a_chain_is_followed_in_any_order(write):
    path = write(
        (RATE, "learning_rate: time.dt/10"), ("dt: 0.5", "dt: 1/time.steps"), ("steps: 2", "steps: grid.cells.y/2")
    )

    assert rate(load_scenario(path)) == 0.25 / 10


def test_schedules_and_nested_sections_may_refer_too(write):
    path = write((RATE, "learning_rate: {type: cosine, initial: 1e-2*time.dt, steps: 2*train.steps}"))

    assert rate(load_scenario(path))["initial"] == 1e-2 * 0.5
    assert rate(load_scenario(path))["steps"] == 10


def test_overrides_and_parents_count_before_references(write, tmp_path):
    write((RATE, "learning_rate: 1e-2*time.dt"))
    child = tmp_path / "child.yaml"
    child.write_text("name: child\nextends: warm.yaml\ntime: {dt: 0.25}\n")

    assert rate(load_scenario(child)) == 1e-2 * 0.25
    assert rate(load_scenario(child, {"time.dt": 2})) == 1e-2 * 2
    assert rate(load_scenario(child, ["update.optimizer.learning_rate=time.dt/train.batch_size"])) == 0.25 / 4


def test_each_cell_of_a_sweep_has_its_own_numbers(write, tmp_path):
    axes = (
        "sweep: {time.dt: [1/2, time.steps], rule: {a: {}, b: {update.optimizer.learning_rate: 3/time.dt}}}\ntrain: {"
    )
    scenario = load_scenario(write((RATE, "learning_rate: 1e-2*time.dt"), ("train: {", axes)))
    cells = expand(scenario)

    assert [rate(cell.scenario) for cell in cells] == [1e-2 * 0.5, 3 / 0.5, 1e-2 * 2, 3 / 2]
    assert all("time.dt" not in cell.scenario.to_yaml() for cell in cells)

    # The resolved sweep is what `resume` expands: the number of the base must not have taken the place of the cells'.
    copy = tmp_path / "scenario.yaml"
    copy.write_text(scenario.to_yaml())
    assert [cell.cell_id for cell in expand(load_scenario(copy))] == [cell.cell_id for cell in cells]


def test_an_axis_over_a_key_that_is_left_at_its_default_can_be_referred_to(write):
    axes = "sweep: {train.validate_every: [2, 4]}\ntrain: {"
    path = write((RATE, "learning_rate: 1/train.validate_every"), ("train: {", axes))

    assert [rate(cell.scenario) for cell in expand(load_scenario(path))] == [0.5, 0.25]


def test_text_stays_text():
    text = "name: a\npde: cold\ndescription: time.dt\nreferences: [time.dt]\ntime: {dt: 0.5}\n"
    text += "loss: {type: mean, on: final.p}\ncontrols: {x: {acts_on: initial.p, initial: time.dt}}\nupdate: dp\n"
    data = scenario_from_text(text).data

    assert (data["description"], data["references"]) == ("time.dt", ["time.dt"])
    assert data["controls"]["x"]["acts_on"] == "initial.p"
    assert data["controls"]["x"]["initial"] == 0.5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1/pde.difusivity", "nothing is written at pde.difusivity; did you mean 'pde.diffusivity'?"),
        ("1/train.validate_every", "a key that is left at its default has to be written"),
        ("update.optimizer.learning_rate", "circle: update.optimizer.learning_rate -> update.optimizer.learning_rate"),
        ("grid.cells", "grid.cells is a section, not a number"),
        ("grid.boundary", "grid.boundary is 'periodic': not arithmetic: unknown name 'periodic'"),
        ("diffusivity", "unknown name 'diffusivity'"),
        ("sweep.x", "nothing is written at sweep.x"),
        ("pde.diffusivity.real", "nothing is written at pde.diffusivity.real"),
        ("pde.__class__", "nothing is written at pde.__class__"),
        ("time.dt.__class__.__mro__", "nothing is written at time.dt.__class__.__mro__"),
        ("().__class__", "not arithmetic"),
        ("(1).real", "not arithmetic"),
        ("sqrt(2).real", "not arithmetic"),
        ("pde.diffusivity()", "not arithmetic"),
        ("pde['diffusivity']", "not arithmetic"),
        ("pde.diffusivity if 1 else 2", "not arithmetic"),
        ("1/(time.dt - time.dt)", "division by zero"),
        ("(time.dt - 2)**0.5", "root of a negative"),
        ("1e308/time.dt", "not a finite number"),
        ("time.dt**-2000", "exponent beyond"),
    ],
)
def test_what_leads_to_no_number_is_refused(write, value, expected):
    with pytest.raises(ScenarioError) as error:
        load_scenario(write((RATE, f'learning_rate: "{value}"')))

    (problem,) = error.value.problems
    assert problem.partition(": ")[2].startswith("update.optimizer.learning_rate: expected a number")
    assert expected in problem


def test_editors_take_references_for_numbers_but_no_other_words():
    pattern = re.compile(ARITHMETIC["pattern"])

    assert all(map(pattern.search, ("1e-2/pde.xi**2/train.batch_size", "time.dt", "-(2*pi + e)/64", "sqrt(2)", "1e-3")))
    assert not any(map(pattern.search, ("periodic", "fast/2", "pde.", "a..b", "__import__('os')", "")))
    # What cannot match is refused at once, not after all ways to split it.
    start = time.perf_counter()
    assert not pattern.search("e.e" * 5000 + "!")
    assert time.perf_counter() - start < 1


def test_circles_and_missing_keys_further_on_are_named(write):
    circle = write(("dt: 0.5", "dt: 1/train.steps"), ("steps: 5", "steps: 1/time.dt"))
    with pytest.raises(ScenarioError, match=r"circle: train\.steps -> time\.dt -> train\.steps"):
        load_scenario(circle)

    lost = write((RATE, "learning_rate: time.dt"), ("dt: 0.5", "dt: 1/time.stebs"))
    with pytest.raises(ScenarioError, match=r"at time\.stebs \(which time\.dt refers to\); did you mean 'time\.steps'"):
        load_scenario(lost)


@pytest.mark.parametrize("value", ["true", "null", "[1, 2]", "1e999", ".nan", "'" + "9" * 201 + "'", "2**x"])
def test_only_finite_numbers_are_taken(value):
    with pytest.raises(ValueError, match=r"a\.x is|not a finite|longer than|nothing"):
        references(f"a: {{x: {value}}}").evaluate("a.x")


def test_long_chains_are_refused_and_branching_ones_take_no_time():
    def chain(length, term):
        return "a:\n  x0: 1\n" + "".join(f"  x{i}: {term(i - 1)}\n" for i in range(1, length))

    long = chain(MAX_CHAIN + 2, lambda i: f"a.x{i}")
    with pytest.raises(ValueError, match="more than 20 keys"):
        references(long).evaluate(f"a.x{MAX_CHAIN + 1}")
    assert references(long).evaluate(f"a.x{MAX_CHAIN - 1}") == 1

    branching = chain(MAX_CHAIN, lambda i: "+".join([f"a.x{i}"] * 20))
    start = time.perf_counter()
    assert references(branching).evaluate(f"a.x{MAX_CHAIN - 1}") == 20 ** (MAX_CHAIN - 1)
    # Without remembering what is known, 20^19 steps.
    assert time.perf_counter() - start < 5


def test_deep_texts_in_a_chain_end_in_a_finding():
    signs = "-" * 190
    text = "a:\n  x0: 1\n" + "".join(f'  x{i}: "{signs}a.x{i - 1}"\n' for i in range(1, MAX_CHAIN))

    assert references(text).evaluate("a.x2") == 1
    with pytest.raises(ValueError, match="not arithmetic"):
        references(text).evaluate(f"a.x{MAX_CHAIN - 1}")
