import threading

import pytest

from toolkit.core.errors import ScenarioError, StorageError
from toolkit.runs import atomic, record
from toolkit.runs.directory import create, create_cell, find, list_runs
from toolkit.runs.provenance import Provenance

HERE = Provenance({}, "3.11", "Linux", "host", ("phinverse", "run"), None)


def start(out, name, run_id, started):
    directory = create(out, name, "abcdef123", run_id)
    begun = record.begin(name, "abcdef123", HERE)
    record.write(directory.record, begun)
    record.update(directory.record, status="done", started=started)
    return directory


def test_an_automatic_id_is_time_and_hash(tmp_path):
    path = create(tmp_path, "heat", "abcdef123").path
    assert path.parent == tmp_path / "heat"
    date, time, digest = path.name.split("-")
    assert (len(date), len(time), digest) == (8, 6, "abcdef")


def test_runs_started_together_never_share_a_directory(tmp_path):
    paths = []
    claim = threading.Barrier(8)

    def claim_one():
        claim.wait()
        paths.append(create(tmp_path, "heat", "abcdef123").path)

    threads = [threading.Thread(target=claim_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 8
    assert all(path.is_dir() for path in paths)


def test_a_name_that_is_taken_is_refused(tmp_path):
    taken = create(tmp_path, "heat", "abc", "mine")
    taken.record.write_text("{}")
    with pytest.raises(ScenarioError, match=r"--name: .*mine exists already.*phinverse resume"):
        create(tmp_path, "heat", "abc", "mine")


def test_a_name_is_free_again_if_its_run_was_killed_before_it_began(tmp_path):
    left = create(tmp_path, "heat", "abc", "mine")
    left.scenario.write_text("name: heat\n")
    (left.path / ".run.123.part.json").write_text("{")
    assert create(tmp_path, "heat", "abc", "mine").path == left.path
    (left.path / "notes.txt").write_text("a user's own")
    with pytest.raises(ScenarioError, match="exists already"):
        create(tmp_path, "heat", "abc", "mine")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "a..b", "last", ".hidden", "-x", "a b", "a.", "a\n"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ScenarioError, match="cannot name a folder"):
        create(tmp_path, "heat", "abc", name)
    with pytest.raises(ScenarioError, match="cannot name a folder"):
        create(tmp_path, name, "abc")
    assert list(tmp_path.glob("*/*")) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "heat").write_text("a file")
    with pytest.raises(StorageError, match="cannot create"):
        create(tmp_path, "heat", "abc")


def test_last_is_the_run_started_last_not_the_last_in_the_alphabet(tmp_path):
    newest = start(tmp_path, "burgers", "a", "2026-11-21T13:00:00.000000Z")
    start(tmp_path, "heat", "z", "2026-11-21T12:00:00.000000Z")
    assert find("last", tmp_path) == newest.path


def test_last_names_a_sweep_not_one_of_its_cells(tmp_path):
    start(tmp_path, "heat", "old", "2026-11-21T12:00:00.000000Z")
    sweep = create(tmp_path, "heat", "abc", "sweep")
    atomic.write_json(sweep.sweep, {"started": "2026-11-21T13:00:00.000000Z"})
    cell = create_cell(sweep.path, "rule=sip,seed=0")
    record.write(cell.record, record.begin("heat", "abc", HERE))
    assert find("last", tmp_path) == sweep.path
    assert [run.id for run in list_runs(tmp_path)] == ["old", "sweep/rule=sip,seed=0"]


def test_a_run_is_found_by_path_by_id_and_by_scenario_and_id(tmp_path):
    path = start(tmp_path, "heat", "mine", "2026-11-21T12:00:00.000000Z").path
    for run in (str(path), "mine", "heat/mine"):
        assert find(run, tmp_path) == path


def test_an_id_that_occurs_twice_is_refused_with_both_paths(tmp_path):
    start(tmp_path, "heat", "mine", "2026-11-21T12:00:00.000000Z")
    start(tmp_path, "burgers", "mine", "2026-11-21T12:00:00.000000Z")
    with pytest.raises(ScenarioError, match=r"burgers/mine, .*heat/mine"):
        find("mine", tmp_path)


def test_what_is_no_run_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(ScenarioError, match=r"no run in .* yet; start one"):
        find("last", tmp_path)
    with pytest.raises(ScenarioError, match=r"no run .nothing. in .*list runs"):
        find("nothing", tmp_path)
    with pytest.raises(ScenarioError, match=r"holds no run\.json"):
        find(str(tmp_path), tmp_path)


def test_a_folder_without_a_record_is_not_listed(tmp_path):
    create(tmp_path, "heat", "abc", "killed-at-once")
    assert list_runs(tmp_path) == []
    assert list_runs(tmp_path / "nowhere") == []
