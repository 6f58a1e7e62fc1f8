"""What `type:` may be in each section: open sets through the registry, closed ones from their tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.core import registry
from toolkit.core.errors import MissingError
from toolkit.networks.plugin import NetworkPlugin
from toolkit.physics.losses import LOSSES
from toolkit.physics.plugin import InverseSolverPlugin, LossPlugin, PDEPlugin
from toolkit.training.rules.base import UpdateRulePlugin

OPEN: Mapping[str, tuple[str, type]] = {
    "PDE": ("pdes", PDEPlugin),
    "update rule": ("update_rules", UpdateRulePlugin),
    "network": ("networks", NetworkPlugin),
    "inverse solver": ("inverse_solvers", InverseSolverPlugin),
}
"""What users call a kind -> its group of entry points and descriptor."""


def names(kind: str) -> list[str]:
    """Registered names of an open set, without importing any."""
    return list(registry.available(OPEN[kind][0]))


def load(kind: str, name: str) -> Any:
    """The descriptor of a registered kind; MissingError if it is broken."""
    group, descriptor = OPEN[kind]
    return registry.load(group, name, descriptor)


def losses(pde: PDEPlugin) -> dict[str, LossPlugin]:
    """Losses of the toolkit and of this PDE; the PDE's come first where names meet."""
    return {**LOSSES, **pde.losses}


def inverse_solvers(pde: PDEPlugin) -> dict[str, InverseSolverPlugin]:
    """Inverse solvers of this PDE and the registered ones that invert it or any PDE."""
    registered = {name: solver for name in names("inverse solver") if (solver := working("inverse solver", name))}
    fitting = {n: s for n, s in registered.items() if s.inverts is None or pde.name in s.inverts}
    return {**fitting, **pde.inverse_solvers}


def working(kind: str, name: str) -> Any:
    """The descriptor of a registered kind for lists of what there is: None if it fails to import.

    A broken plugin harms those who ask for it, not those who ask what else there is.
    """
    try:
        return load(kind, name)
    except MissingError:
        return None


def solvers_elsewhere(pde: PDEPlugin) -> dict[str, list[str]]:
    """Other PDEs and the inverse solvers they have, for messages; broken plugins are left out."""
    result: dict[str, list[str]] = {}
    for name in names("PDE"):
        other = working("PDE", name) if name != pde.name else None
        if other is not None and other.inverse_solvers:
            result[name] = sorted(other.inverse_solvers)
    return result
