import numpy as np
import pytest

from toolkit.core.errors import ScenarioError, StorageError
from toolkit.runs import atomic, layout, record
from toolkit.runs.directory import create
from toolkit.runs.fields import write_fields
from toolkit.runs.layout import Variable
from toolkit.runs.metrics import MetricsWriter, read_metrics, write_metrics_nc
from toolkit.runs.open import open_run
from toolkit.runs.provenance import collect


@pytest.fixture
def directory(tmp_path):
    made = create(tmp_path, "heat", "abc", "mine")
    atomic.write_text(made.scenario, "name: heat\n")
    record.write(made.record, record.begin("heat", "abc", collect(["phinverse"], tmp_path), backend="jax"))
    with MetricsWriter(made.metrics_lines) as writer:
        writer.append({"step": 1, "train_loss": 2.0})
    return made


def test_a_running_run_shows_what_it_has_so_far(directory):
    with open_run(directory.path) as run:
        assert run.path == directory.path
        assert run.scenario_text == "name: heat\n"
        assert (run.record.status, run.record.backend) == ("running", "jax")
        np.testing.assert_array_equal(run.metrics.train_loss, [2.0])
        with pytest.raises(StorageError, match=r"no file .*fields\.nc"):
            _ = run.fields


def test_a_finished_run_shows_its_datasets(directory):
    write_metrics_nc(directory.metrics, read_metrics(directory.metrics_lines), {"compile_seconds": 3.0})
    write_fields(
        directory.fields,
        [(Variable("psi", ("sample",), "psi", dtype="complex128"), np.array([1j, 2.0]))],
        [layout.sample_coordinate(2)],
        {},
    )
    record.update(directory.record, status="done")
    with open_run(directory.path) as run:
        assert run.metrics.attrs["compile_seconds"] == 3.0
        np.testing.assert_array_equal(run.fields.psi, [1j, 2.0])
        assert run.fields is run.fields
    assert str(directory.path) in repr(run)


def test_metrics_of_an_earlier_session_do_not_hide_those_of_a_resumed_one(directory):
    write_metrics_nc(directory.metrics, [], {})
    with open_run(directory.path) as run:
        assert run.metrics.sizes["step"] == 1


def test_a_folder_without_record_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"not a run directory: it holds no run\.json"):
        open_run(tmp_path)
