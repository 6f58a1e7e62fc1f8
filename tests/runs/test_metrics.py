import json
import math

import numpy as np
import pytest

from toolkit.core.errors import StorageError
from toolkit.runs import datasets, names
from toolkit.runs.metrics import MetricsWriter, read_metrics, to_dataset, write_metrics_nc

RECORDS = [
    {"step": 0, "validation_loss": 4.0},
    {"step": 1, "train_loss": 3.0, "gradient_norm": 0.5},
    {"step": 2, "train_loss": 2.0, "validation_loss": 1.5, "wall_seconds": 0.25},
]


def written(path, records=RECORDS, **options):
    with MetricsWriter(path, **options) as writer:
        for record in records:
            writer.append(record)
    return path


def test_each_record_is_on_disk_when_append_returns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for count, record in enumerate(RECORDS, start=1):
        writer.append(record)
        assert len(read_metrics(path)) == count
    writer.close()
    assert read_metrics(path) == RECORDS


def test_a_torn_last_line_is_skipped(tmp_path):
    path = written(tmp_path / "metrics.jsonl")
    path.write_text(path.read_text() + '{"step": 3, "train_l')
    assert read_metrics(path) == RECORDS


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = written(tmp_path / "metrics.jsonl")
    path.write_text("oops\n" + path.read_text())
    with pytest.raises(StorageError, match=r"metrics\.jsonl:1: not a record"):
        read_metrics(path)


def test_resuming_drops_what_lies_beyond_the_checkpoint(tmp_path):
    path = written(tmp_path / "metrics.jsonl")
    path.write_text(path.read_text() + '{"step": 3, "train_l')
    written(path, [{"step": 2, "train_loss": 9.0}], resume_step=1)
    assert read_metrics(path) == [*RECORDS[:2], {"step": 2, "train_loss": 9.0}]


def test_a_new_run_starts_empty(tmp_path):
    path = written(tmp_path / "metrics.jsonl")
    written(path, [])
    assert read_metrics(path) == []


def test_non_finite_numbers_survive_and_every_line_is_json(tmp_path):
    path = written(tmp_path / "metrics.jsonl", [{"step": 1, "train_loss": math.inf, "a": math.nan, "b": -math.inf}])
    (record,) = read_metrics(path)
    assert record["train_loss"] == math.inf
    assert record["b"] == -math.inf
    assert math.isnan(record["a"])

    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)


def test_a_record_without_step_is_refused(tmp_path):
    with MetricsWriter(tmp_path / "m") as writer, pytest.raises(ValueError, match="needs `step`"):
        writer.append({"train_loss": 1.0})


def test_the_dataset_has_all_metrics_and_nan_where_none_was_recorded(tmp_path):
    path = tmp_path / "metrics.nc"
    write_metrics_nc(path, RECORDS, {"compile_seconds": 1.5, "title": "heat"})
    with datasets.open_dataset(path) as metrics:
        assert set(metrics.data_vars) == {*names.METRICS, "gradient_norm"}
        np.testing.assert_array_equal(metrics.step, [0, 1, 2])
        np.testing.assert_array_equal(metrics.train_loss, [np.nan, 3.0, 2.0])
        np.testing.assert_array_equal(metrics.validation_loss, [4.0, np.nan, 1.5])
        assert metrics.control_error.isnull().all()
        assert metrics.attrs["compile_seconds"] == 1.5
        assert metrics.wall_seconds.attrs["units"] == "s"
        assert metrics.gradient_norm.attrs["long_name"] == "gradient norm"
        assert all({"long_name", "units", "coverage_content_type"} <= set(v.attrs) for v in metrics.variables.values())


def test_records_of_one_step_are_merged_and_steps_are_sorted():
    metrics = to_dataset([{"step": 5, "train_loss": 1.0}, {"step": 2}, {"step": 5, "validation_loss": 2.0}])
    np.testing.assert_array_equal(metrics.step, [2, 5])
    assert float(metrics.train_loss[1]) == 1.0
    assert float(metrics.validation_loss[1]) == 2.0


def test_own_metrics_can_be_described():
    metrics = to_dataset([{"step": 1, "div": 0.1}], descriptions={"div": ("largest divergence", "s-1")})
    assert (metrics["div"].attrs["long_name"], metrics["div"].attrs["units"]) == ("largest divergence", "s-1")
