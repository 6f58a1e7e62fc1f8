"""From a file to a `Scenario`: typed sections, defaults, inheritance, overrides, origins, a stable hash."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import scenario_fakes
from whole_runs import samples_file

from toolkit.core.errors import ScenarioError
from toolkit.scenario.load import load_scenario, scenario_from_text
from toolkit.scenario.sections import ScheduleChoice

SHORT = "name: short\npde: cold\n"


def test_sections_are_typed_and_arithmetic_is_evaluated(write):
    sections = load_scenario(write()).sections

    assert sections.grid is not None
    assert sections.grid.cells == {"x": 16, "y": 8}
    assert sections.grid.extent == {"x": 2 * math.pi, "y": 4.0}
    assert sections.grid.boundary_words() == {"periodic"}
    assert sections.pde.plugin is scenario_fakes.WARM
    assert sections.pde.options == scenario_fakes.WarmParameters(diffusivity=1 / 32)
    assert sections.controls["start"].role == "initial"
    assert sections.data is not None
    assert sections.data.infinite
    assert sections.networks["estimator"].output == ("start",)
    assert sections.loss[0].on == "final.u"
    assert sections.update is not None
    assert sections.update.inverse_solver is not None
    assert sections.update.inverse_solver.options == scenario_fakes.SpectralOptions()
    assert sections.update.optimizer.learning_rate == 1e-3
    assert (sections.physics_precision, sections.network_precision) == ("float64", "float32")


def test_only_name_and_pde_are_required():
    scenario = scenario_from_text(SHORT)

    assert scenario.sections.update is None
    assert scenario.data["time"] == {"steps": 1, "dt": 1.0}
    assert "grid" not in scenario.data


def test_bare_words_stand_for_kinds_without_options():
    text = SHORT + "loss: {type: mean, on: final.p}\ncontrols: {x: {acts_on: initial.p, initial: 3}}\nupdate: dp\n"
    update = scenario_from_text(text).sections.update

    assert update is not None
    assert (update.type, update.optimizer.type, update.optimizer.learning_rate) == ("dp", "adam", 1e-3)


def test_loss_may_be_a_list_of_terms():
    text = SHORT + "loss: [{type: mean, on: final.p}, {type: mean, on: trajectory.q, weight: 1/4}]\n"
    scenario = scenario_from_text(text)

    assert [(term.on, term.weight) for term in scenario.sections.loss] == [
        ("final.p", 1.0),
        ("trajectory.q", 0.25),
    ]
    assert isinstance(scenario.data["loss"], list)


def test_a_learning_rate_may_be_a_schedule(write):
    schedule = "{type: cosine, initial: 1/100, steps: 1e3}"
    path = write(("learning_rate: 1e-3", f"learning_rate: {schedule}"))
    update = load_scenario(path).sections.update

    assert update is not None
    assert isinstance(update.optimizer.learning_rate, ScheduleChoice)
    assert update.optimizer.learning_rate.options(0) == pytest.approx(0.01, rel=1e-15)  # one rounding


def test_extent_defaults_to_cells_of_size_one(write):
    sections = load_scenario(write((" extent: {x: 2*pi, y: 4},", ""))).sections

    assert sections.grid is not None
    assert sections.grid.dx == (1.0, 1.0)


def test_boundaries_per_axis_and_per_side(write):
    path = write(("periodic", "{x: zero, y: zero, y-: zero}"), ("inverse_solver: spectral", "inverse_solver: descent"))
    grid = load_scenario(path).sections.grid

    assert grid is not None
    assert dict(grid.boundary) == {"x-": "zero", "x+": "zero", "y-": "zero", "y+": "zero"}


# --- the resolved scenario --------------------------------------------------------------------------------


def test_the_resolved_scenario_reads_back_as_itself(write, tmp_path):
    scenario = load_scenario(write())
    copy = tmp_path / "run" / "scenario.yaml"
    copy.parent.mkdir()
    copy.write_text(scenario.to_yaml())

    again = load_scenario(copy)

    assert again.data == scenario.data
    assert again.sections == scenario.sections
    assert again.to_yaml() == scenario.to_yaml()
    assert again.content_hash() == scenario.content_hash()


def test_the_resolved_scenario_names_its_data_from_anywhere(tmp_path):
    samples_file(tmp_path / "targets.nc", p_target=("component",))
    path = tmp_path / "file.yaml"
    path.write_text("name: file\npde: cold\ndata: {type: file, path: targets.nc}\n")
    scenario = load_scenario(path)

    assert scenario.data["data"]["path"] == str(tmp_path / "targets.nc")
    assert scenario.sections.data is not None
    assert scenario.sections.data.path == tmp_path / "targets.nc"


def test_the_hash_says_what_the_scenario_says_not_how(write):
    first = load_scenario(write()).content_hash()
    changes = [
        ("1/32", "0.03125"),
        ("{type: adam, learning_rate: 1e-3}", "adam"),
        ("name: warm", "name: 'warm'  # text"),
    ]

    assert load_scenario(write(*changes)).content_hash() == first
    assert load_scenario(write(("1/32", "1/33"))).content_hash() != first


HASH = """
import sys
sys.path.insert(0, sys.argv[1])
import warnings
warnings.simplefilter("ignore")
import scenario_fakes
from toolkit.core import registry
registry.available = scenario_fakes.available
from toolkit.scenario.load import load_scenario
from toolkit.scenario.sweep import expand
scenario = load_scenario(sys.argv[2])
print(scenario.content_hash(), *(cell.cell_id for cell in expand(scenario)))
print([name for name in ("torch", "jax") if name in sys.modules])
"""


def test_hash_and_cells_are_those_of_every_process_and_neither_torch_nor_jax_is_loaded(write):
    path = write(("train: {", "sweep: {run.seed: [0, 1], rule: {sip: {}, dp: {update: dp}}}\ntrain: {"))
    arguments = [sys.executable, "-c", HASH, str(Path(__file__).parent), str(path)]
    outputs = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        outputs.add(done.stdout)

    assert len(outputs) == 1
    assert outputs.pop().endswith("[]\n")


# --- inheritance ------------------------------------------------------------------------------------------


@pytest.fixture
def child(write, tmp_path):
    write()

    def child(text: str) -> Path:
        path = tmp_path / "child.yaml"
        path.write_text("name: child\nextends: warm.yaml\n" + text)
        return path

    return child


def test_maps_merge_and_lists_replace(child, write):
    write(("name: warm", "name: warm\nreferences: [a, b]"))
    scenario = load_scenario(child("references: [c]\ntrain: {steps: 7}\n"))

    assert scenario.data["references"] == ["c"]
    assert scenario.data["train"]["steps"] == 7
    assert scenario.data["train"]["batch_size"] == 4
    assert "extends" not in scenario.data


def test_a_changed_type_replaces_its_section(child):
    scenario = load_scenario(child("update: {optimizer: {type: sgd, momentum: 0.5}}\n"))

    assert scenario.data["update"]["type"] == "sip"
    assert scenario.data["update"]["optimizer"]["learning_rate"] == 1e-3
    assert "beta1" not in scenario.data["update"]["optimizer"]


def test_a_changed_word_replaces_its_section(child):
    assert "inverse_solver" not in load_scenario(child("update: dp\n")).data["update"]


def test_null_removes_a_section(child):
    text = "networks: null\ndata: null\nloss: mean\nupdate: dp\ncontrols: {start: {initial: 0}}\n"

    assert load_scenario(child(text)).sections.networks == {}


def test_a_name_is_not_inherited(child, tmp_path):
    path = tmp_path / "nameless.yaml"
    path.write_text("extends: warm.yaml\n")

    with pytest.raises(ScenarioError, match=r"nameless\.yaml:1:1: name: required key is missing"):
        load_scenario(path)


def test_findings_stand_where_the_value_was_written(child, tmp_path):
    with pytest.raises(ScenarioError) as error:
        load_scenario(child("train: {batch: 4}\nrun: {seed: x}\n"))

    assert [problem.removeprefix(str(tmp_path)) for problem in error.value.problems] == [
        "/child.yaml:3:9: train.batch: unknown key; did you mean 'batch_size'?",
        "/child.yaml:4:13: run.seed: expected an integer or arithmetic such as 2*pi/64, got 'x': not "
        "arithmetic: unknown name 'x' (pi, e and sqrt are known)",
    ]


def test_inheritance_in_a_circle_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\nextends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("name: b\nextends: a.yaml\n")

    with pytest.raises(ScenarioError, match=r"b\.yaml:2:10: extends: .* circle: a\.yaml -> b\.yaml -> a\.yaml"):
        load_scenario(tmp_path / "a.yaml")


def test_a_missing_parent_is_told_at_its_line(child, tmp_path):
    path = tmp_path / "orphan.yaml"
    path.write_text("name: orphan\nextends: none.yaml\n")

    with pytest.raises(ScenarioError, match=r"orphan\.yaml:2:10: extends: no such file"):
        load_scenario(path)


# --- overrides --------------------------------------------------------------------------------------------


def test_overrides_as_text_and_as_mapping_are_the_same(write):
    path = write()
    text = load_scenario(path, ["train.steps=10", "update.clip={norm: 1.5}", "pde.diffusivity=1/8"])
    mapping = load_scenario(path, {"train.steps": 10, "update": {"clip": {"norm": 1.5}}, "pde.diffusivity": 0.125})

    assert text.data == mapping.data
    assert text.data["train"]["steps"] == 10
    assert text.data["update"]["clip"] == {"norm": 1.5, "value": None}


def test_the_word_of_update_alone_switches_the_way_of_learning(write):
    data = load_scenario(write(("1e-3", "2e-3")), ["update.type=dp"]).data["update"]

    assert data["type"] == "dp"
    assert "inverse_solver" not in data
    assert data["optimizer"]["learning_rate"] == 2e-3


def test_overrides_reach_list_entries(write):
    path = write(("{type: l2, on: final.u}", "[{type: l2, on: final.u}]"))

    assert load_scenario(path, ["loss.0.weight=2"]).sections.loss[0].weight == 2.0
    with pytest.raises(ScenarioError, match=r"--set loss\.1\.weight: loss is a list with entries 0 to 0"):
        load_scenario(path, ["loss.1.weight=2"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=1", "--set train.step: unknown key; did you mean 'steps'?"),
        ("trian.steps=1", "--set trian: unknown key; did you mean 'train'?"),
        ("train.steps=0", "--set train.steps: expected a number > 0, got 0"),
        ("train.steps=many", "--set train.steps: expected an integer or arithmetic"),
        ("train.steps", "--set train.steps: expected key=value"),
        ("train..steps=1", "--set train..steps: expected a dotted key"),
        ("name.first=1", "--set name.first: name is 'warm', it has no keys"),
        ("train.steps=!!python/name:os.system", "--set train.steps=!!python/name:os.system: tag"),
        ("train.steps=[1", "--set train.steps=[1: not YAML"),
        ("update.type=spi", "--set update.type: no update rule 'spi'; did you mean 'sip'?"),
    ],
)
def test_findings_in_overrides_name_the_override(write, override, message):
    with pytest.raises(ScenarioError) as error:
        load_scenario(write(), [override])

    assert message in str(error.value)


def test_objects_are_no_overrides(write):
    with pytest.raises(ScenarioError, match="expected plain data"):
        load_scenario(write(), {"train.steps": object()})


def test_every_value_has_an_origin(write, tmp_path):
    write()
    path = tmp_path / "child.yaml"
    path.write_text("name: child\nextends: warm.yaml\nrun: {precision: float64}\n")
    origins = load_scenario(path, ["train.steps=10"]).origins

    assert origins["name"] == f"{path}:1"
    assert origins["grid.cells.x"] == f"{tmp_path / 'warm.yaml'}:2"
    assert origins["train.steps"] == "--set train.steps=10"
    assert origins["train.validate_every"] == "default"
    assert origins["run.precision"] == f"{path}:3"
    assert origins["update.inverse_solver.type"] == f"{tmp_path / 'warm.yaml'}:13"
    assert origins["update.inverse_solver.noise"] == "default"


def test_a_scenario_does_not_change(write):
    scenario = load_scenario(write())

    with pytest.raises(AttributeError):
        scenario.path = None  # pyright: ignore[reportAttributeAccessIssue]


def test_a_direct_optimisation_needs_samples_to_optimise_for(write):
    network = "networks:\n  estimator: {type: u_net, levels: 2, filters: 4, input: target, output: start}\n"
    direct = [(network, ""), ("initial.u}", "initial.u, initial: 0}")]

    assert load_scenario(write(*direct)).sections.networks == {}
    with pytest.raises(ScenarioError, match=r"7:50: data\.validation: without networks the validation samples"):
        load_scenario(write(*direct, ("validation: 4", "validation: 0")))
