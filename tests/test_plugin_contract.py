"""Every registered plugin passes the contract, whatever package it comes from."""

from __future__ import annotations

import pytest

from toolkit.core import registry
from toolkit.testing import check_plugin

NAMES = sorted({name for group in registry.GROUPS for name in registry.available(group)})


@pytest.mark.parametrize("name", NAMES)
def test_plugin_keeps_the_contract(name: str) -> None:
    check_plugin(name)
