import dataclasses
import json
import subprocess
import sys

import pytest

from toolkit.core.errors import StorageError
from toolkit.runs import record
from toolkit.runs.provenance import collect

BEGIN_ELSEWHERE = """
import sys
from pathlib import Path
from toolkit.runs import record
from toolkit.runs.provenance import Provenance
here = Provenance({}, "3.11", "Linux", "host", (), None)
record.write(Path(sys.argv[1]), record.begin("heat", "abc", here))
print("begun", flush=True)
sys.stdin.read()
"""


def begun(tmp_path):
    path = tmp_path / "run.json"
    provenance = collect(["phinverse", "run", "heat.yaml"], tmp_path)
    record.write(path, record.begin("heat", "abc", provenance, backend="torch", device="cpu", seeds={"run": 3}))
    return path


def test_a_record_survives_the_way_to_the_disk(tmp_path):
    path = begun(tmp_path)
    first = record.read(path)
    record.write(path, first)
    assert record.read(path) == first
    assert first.status == "running"
    assert first.command == ("phinverse", "run", "heat.yaml")
    assert (first.backend, first.device, first.seeds) == ("torch", "cpu", {"run": 3})
    assert first.versions["phiflow"] == "3.4.0"


def test_run_json_has_the_keys_that_scripts_read(tmp_path):
    content = json.loads(begun(tmp_path).read_text())
    promised = {"status", "reason", "started", "finished", "versions", "backend", "device", "seeds"}
    assert promised | {"git_commit", "command"} <= set(content)


def test_an_end_is_stamped_and_a_resumed_run_forgets_it(tmp_path):
    path = begun(tmp_path)
    failed = record.update(path, status="failed", reason="diverged")
    assert failed.finished is not None
    assert failed.finished >= failed.started
    again = record.update(path, status="running")
    assert (again.finished, again.reason, again.started) == (None, None, failed.started)


def test_the_record_of_a_living_process_is_believed(tmp_path):
    current = record.read(begun(tmp_path))
    assert record.observed(current) == current


def test_a_killed_run_is_reported_as_interrupted(tmp_path):
    path = tmp_path / "run.json"
    command = [sys.executable, "-c", BEGIN_ELSEWHERE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert record.observed(record.read(path)).status == "running"
        process.kill()
        process.wait()
    found = record.observed(record.read(path))
    assert found.status == "interrupted"
    assert str(process.pid) in (found.reason or "")


def test_a_process_id_that_was_used_again_does_not_count(tmp_path):
    current = record.read(begun(tmp_path))
    other = dataclasses.replace(current, process_started="another boot+1")
    assert record.observed(other).status == "interrupted"


def test_a_run_on_another_host_is_believed(tmp_path):
    other = dataclasses.replace(record.read(begun(tmp_path)), host="far away", process_started="x")
    assert record.observed(other).status == "running"


def test_what_is_no_record_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"status": "fine"}')
    with pytest.raises(StorageError, match="not the record of a run"):
        record.read(path)
    with pytest.raises(ValueError, match="status must be one of"):
        record.RunRecord(status="fine")
