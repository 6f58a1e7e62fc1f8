"""Where the members of a batch are, so that the same batch finds them again."""

from __future__ import annotations

import pytest
from whole_runs import HEAT, WAVE, execute, write_scenario

import toolkit
from toolkit.core.errors import ScenarioError
from toolkit.runs.batch_plan import check_directories, create_directories, plan

AXES = ("output: {", "sweep: {run.seed: [0, 1], rule: {sip: {}, adam: {update: {type: dp}}}}\noutput: {")


def load(path, **overrides):
    return toolkit.load_scenario(path, overrides)


def test_directories_follow_from_what_the_scenarios_say(tmp_path):
    sweep, single = write_scenario(tmp_path, HEAT, AXES), write_scenario(tmp_path, WAVE)
    first = plan([load(sweep), load(single)], tmp_path)
    second = plan([load(sweep), load(single), load(single)], tmp_path)
    assert [m.path for m in first.members] == [m.path for m in second.members]
    assert len(first.members) == 5
    assert [m.path.relative_to(tmp_path).parts[0] for m in first.members] == ["heat"] * 4 + ["wave"]
    assert first.members[-1].path == first.paths[1]
    assert {m.path.parent for m in first.members[:4]} == {first.paths[0]}
    assert first.members[0].name.startswith("heat/seed=0-rule=sip-")
    assert not (tmp_path / "heat").exists(), "planning writes nothing"
    other = toolkit.load_scenario(single, {"time.steps": 3})
    assert plan([other], tmp_path).paths != (first.paths[1],)
    both = plan([load(single), other], tmp_path).members
    assert both[0].name != both[1].name, "two scenarios of one name are told apart"


def test_a_sweep_is_described_once(tmp_path):
    planned = plan([load(write_scenario(tmp_path, HEAT, AXES))], tmp_path)
    create_directories(planned)
    listed = (planned.paths[0] / "sweep.json").read_text()
    assert all(m.path.name in listed for m in planned.members)
    create_directories(planned)
    assert (planned.paths[0] / "sweep.json").read_text() == listed
    again = toolkit.load_scenario(planned.paths[0] / "scenario.yaml")
    assert again.content_hash() == planned.sweeps[0].scenario.content_hash()


def test_a_directory_with_another_run_in_it_is_refused(tmp_path):
    path = write_scenario(tmp_path, WAVE)
    planned = plan([load(path)], tmp_path)
    other = execute(path, tmp_path, {"time.steps": 2}, name=planned.paths[0].name)
    other.stored.close()
    with pytest.raises(ScenarioError, match="holds a run of another scenario"):
        check_directories(planned.members)
