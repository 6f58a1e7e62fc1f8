"""`toolkit.__all__` is the public API: complete, importable, and costing nothing until used."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import toolkit


def test_all_is_what_is_public() -> None:
    # Submodules appear as attributes once they are imported; they are not part of the API.
    visible = {name for name in dir(toolkit) if not name.startswith("_")}
    public = {name for name in visible if not inspect.ismodule(inspect.getattr_static(toolkit, name, None))}
    assert public == set(toolkit.__all__)
    assert len(toolkit.__all__) == len(set(toolkit.__all__))


@pytest.mark.parametrize("name", toolkit.__all__)
def test_every_name_can_be_imported(name: str) -> None:
    assert getattr(importlib.import_module("toolkit"), name) is not None


def test_star_import_gives_all_names() -> None:
    namespace: dict[str, object] = {}
    exec("from toolkit import *", namespace)
    assert set(toolkit.__all__) <= set(namespace)


def test_unknown_names_are_refused_as_by_any_module() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'scenari'"):
        _ = toolkit.scenari  # type: ignore[attr-defined]


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "jax", "phi", "phiml", "xarray", "numpy"}
    code = f"import sys, toolkit; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
