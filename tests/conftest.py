"""Fixtures for all tests: the array library under test, in double precision on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from toolkit.core.backend import Backend

FOREIGN_WARNINGS = (
    # PhiML warns about one of its own boundaries when it is imported.
    "ignore:symmetric-gradient extrapolation is experimental:DeprecationWarning",
    # PhiML's torch backend imports numpy.core, which numpy 2 has renamed.
    "ignore:numpy.core.numeric is deprecated:DeprecationWarning",
    # PhiML instantiates the autograd function of every linear solve on torch.
    "ignore:.*autograd function:DeprecationWarning",
    # torch warns once per process about the sparse matrices that PhiML makes.
    "ignore:Sparse CSR tensor support is in beta:UserWarning",
    "ignore:Sparse invariant checks are implicitly disabled:UserWarning",
    # PhiML compiles its CG loop on torch with TorchScript.
    "ignore:.*torch.jit:DeprecationWarning",
)
"""Warnings of the pinned PhiML that nobody outside it can avoid."""


def pytest_configure(config: pytest.Config) -> None:
    """Warnings stay errors but for those above."""
    for line in FOREIGN_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(params=("torch", "jax"))
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The active backend, torch and then JAX; `parametrize("backend", ["jax"], indirect=True)` takes one."""
    # Imported here, because PhiML warns on import and the filters hold only once pytest is configured.
    from toolkit.core.backend import using

    with using(request.param, device="cpu", physics="float64", network="float64") as active:
        yield active
