import logging
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from toolkit.core.errors import StorageError
from toolkit.runs import checkpoint

SAVE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from toolkit.runs import checkpoint
directory, step = Path(sys.argv[1]), int(sys.argv[2])
while True:
    step += 1
    checkpoint.save(directory, {"w": np.full(2000, step, "float64"), "b": np.uint64(step)}, {"step": step})
    print(step, flush=True)
"""


class Death(BaseException):
    """Stands for a process that ends here; nothing in the code may catch it."""


def arrays_of(step):
    return {"w": np.full((2, 3), step, "float64"), "b": np.array(step, "int64")}


def test_arrays_and_state_come_back_exactly(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "z/last first": generator.normal(size=(3, 2)),
        "float32": generator.normal(size=4).astype("float32"),
        "big": np.array([2**64 - 1], "uint64"),
        "int64": np.array([-(2**62)], "int64"),
        "flag": np.array([True, False]),
        "scalar": np.array(1.5),
        "empty": np.zeros((0, 3)),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "strided": np.arange(10)[::3],
    }
    state = {
        "step": 7,
        "random": {"state": 2**127 + 1},
        "best": float("inf"),
        "name": "é",
        "list": [1, None, True],
    }
    checkpoint.save(tmp_path / "checkpoint", arrays, state)
    loaded, loaded_state = checkpoint.load(tmp_path / "checkpoint")
    assert loaded_state == state
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)


def test_types_that_the_format_lacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'w' of type complex128"):
        checkpoint.save(tmp_path, {"w": np.zeros(2, complex)}, {})


def test_a_new_checkpoint_replaces_the_old_and_keeps_one_before_it(tmp_path):
    for step in range(5):
        checkpoint.save(tmp_path, arrays_of(step), {"step": step})
    assert checkpoint.load(tmp_path)[1] == {"step": 4}
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [n.split("-")[0] for n in names] == ["arrays", "arrays", "previous.json", "state.json"]


def test_no_checkpoint_is_a_clear_error(tmp_path):
    assert not checkpoint.exists(tmp_path / "checkpoint")
    with pytest.raises(StorageError, match="no checkpoint in"):
        checkpoint.load(tmp_path / "checkpoint")


@pytest.mark.parametrize("victim", ["state.json", "arrays"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, victim):
    checkpoint.save(tmp_path, arrays_of(1), {"step": 1})
    old = set(tmp_path.glob("arrays*"))
    checkpoint.save(tmp_path, arrays_of(2), {"step": 2})
    path = tmp_path / "state.json" if victim == "state.json" else (set(tmp_path.glob("arrays*")) - old).pop()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        arrays, state = checkpoint.load(tmp_path)
    assert state == {"step": 1}
    np.testing.assert_array_equal(arrays["w"], arrays_of(1)["w"])
    assert path.name in caplog.text


def test_a_damaged_checkpoint_without_another_is_an_error_that_names_it(tmp_path):
    checkpoint.save(tmp_path, arrays_of(1), {"step": 1})
    (path,) = tmp_path.glob("arrays*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match=rf"{path.name} is damaged.*start the run again"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("operation", ["replace", "unlink", "write_bytes"])
def test_death_at_any_step_leaves_a_whole_checkpoint(tmp_path, monkeypatch, operation):
    original = getattr(Path, operation)
    for fatal in range(12):
        directory = tmp_path / str(fatal)
        for step in (1, 2):
            checkpoint.save(directory, arrays_of(step), {"step": step})
        calls = iter(range(100))

        def dying(self, *arguments, calls=calls, fatal=fatal, **options):
            if next(calls) == fatal:
                raise Death
            return original(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, operation, dying)
            try:
                checkpoint.save(directory, arrays_of(3), {"step": 3})
                died = False
            except Death:
                died = True
        arrays, state = checkpoint.load(directory)
        assert state["step"] in (2, 3)
        assert died or state["step"] == 3
        np.testing.assert_array_equal(arrays["w"], arrays_of(state["step"])["w"])
        checkpoint.save(directory, arrays_of(4), {"step": 4})
        assert checkpoint.load(directory)[1] == {"step": 4}
    assert not died, "more steps than the test tries"


def test_kill_at_random_moments_loses_no_finished_checkpoint(tmp_path):
    moments = random.Random(0)
    directory, done = tmp_path / "checkpoint", 0
    for _ in range(24):
        command = [sys.executable, "-c", SAVE_FOREVER, str(directory), str(done)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            time.sleep(moments.uniform(0.0, 0.02))
            process.kill()
            reported = [first, *(int(line) for line in process.stdout.read().split())]
        arrays, state = checkpoint.load(directory)
        # The process may die between saving and telling.
        assert state["step"] in (reported[-1], reported[-1] + 1)
        np.testing.assert_array_equal(arrays["w"], np.full(2000, state["step"]))
        assert arrays["b"] == state["step"]
        done = state["step"]
