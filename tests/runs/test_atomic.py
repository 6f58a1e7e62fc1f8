import errno
import json
import os
from pathlib import Path

import pytest

from toolkit.core.errors import StorageError
from toolkit.runs import atomic


def test_json_written_is_read_again(tmp_path):
    content = {"a": [1, 2.5, None], "b": {"c": "é"}}
    atomic.write_json(tmp_path / "x.json", content)
    assert atomic.read_json(tmp_path / "x.json") == content


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.txt"
    atomic.write_text(path, "old")

    def fail_half_way():
        with atomic.replacing(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "x.txt"
    atomic.write_text(path, "old")
    with atomic.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="Windows refuses to replace an open file")
def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
    path = tmp_path / "x.txt"
    atomic.write_text(path, "old")
    with path.open() as reader:
        atomic.write_text(path, "new")
        assert reader.read() == "old"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")],
)
def test_causes_are_named_in_words(tmp_path, monkeypatch, number, words):
    def refuse(self, data):
        raise OSError(number, "Errno")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match=f"cannot write .*x.txt: .*{words}"):
        atomic.write_text(tmp_path / "x.txt", "text")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StorageError, match="no such file or folder"):
        atomic.write_text(tmp_path / "nowhere" / "x.txt", "text")


def test_broken_json_is_a_storage_error_that_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(StorageError, match=r"x\.json: it is not JSON"):
        atomic.read_json(tmp_path / "x.json")


def test_nan_is_refused_because_json_has_none(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path):
    (tmp_path / f".x.77{atomic.PART}.json").write_text("half")
    atomic.write_json(tmp_path / "x.json", 1)
    atomic.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == 1
