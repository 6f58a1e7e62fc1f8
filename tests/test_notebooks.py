"""The notebooks run from top to bottom; their own assertions hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SIZES = {"STEPS": 15, "SEEDS": [0]}
"""What the first cell of a notebook sets, shorter."""


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_clean(path):
    """What nbformat 4.5 asks for; outputs are not committed."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        # A source is a list of lines with their ends.
        assert all(line.endswith("\n") and line.count("\n") == 1 for line in cell["source"][:-1])
        assert not cell["source"][-1].endswith("\n")
        extra = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
        assert {
            key: value for key, value in cell.items() if key not in ("id", "cell_type", "metadata", "source")
        } == extra


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    """Cells are executed in one namespace, in a folder beside a copy of the scenarios."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {}
    try:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"{path.name}:{cell['id']}", "exec"), namespace)
                namespace |= {name: value for name, value in SIZES.items() if cell["id"] == "sizes"}
    finally:
        plt.close("all")
