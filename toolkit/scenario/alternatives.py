"""The scenario with another update rule: what its checks say to each rule and inverse solver that is registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.core.errors import ScenarioError
from toolkit.scenario import kinds
from toolkit.scenario.merge import override, without
from toolkit.scenario.problems import Origin
from toolkit.scenario.scenario import Scenario, compile_scenario
from toolkit.scenario.yaml_loader import from_plain

LINE_SEARCH = "lbfgs"
ADAM = {"type": "adam", "learning_rate": 1e-3}


@dataclass(frozen=True)
class Alternative:
    """One rule, with one inverse solver where it needs one."""

    rule: str
    solver: str | None
    scenario: Scenario | None
    """Ready to run; None where the checks refuse it."""
    refused: str | None
    """Why they do."""
    own: bool
    """Whether it is what the scenario says itself."""
    special: bool
    """Whether the solver was made for this PDE."""


def alternatives(scenario: Scenario) -> list[Alternative]:
    """Every registered rule with every solver for this PDE, the scenario's own with its own options, first."""
    update, solvers = scenario.sections.update, kinds.inverse_solvers(scenario.sections.pde.plugin)
    assert update is not None
    found = []
    for rule in kinds.names("update rule"):
        plugin = kinds.working("update rule", rule)
        if plugin is None:
            continue
        for solver in solvers if "inverse_solver" in plugin.needs else (None,):
            chosen = update.inverse_solver.type if update.inverse_solver else None
            special = solver is not None and _made_for(scenario, solvers[solver])
            if (rule, solver) == (update.type, chosen):
                found.insert(0, Alternative(rule, solver, scenario, None, True, special))
                continue
            section: dict[str, Any] = {"type": rule, "optimizer": _optimizer(scenario)}
            if solver is not None:
                section["inverse_solver"] = solver
            changed, refused = _with_update(scenario, section)
            found.append(Alternative(rule, solver, changed, refused, False, special))
    return found


def _made_for(scenario: Scenario, solver: Any) -> bool:
    return solver.name in scenario.sections.pde.plugin.inverse_solvers or solver.inverts is not None


def _optimizer(scenario: Scenario) -> Mapping[str, Any]:
    """The scenario's own; one that searches along lines does not fit every rule."""
    written = scenario.data["update"]["optimizer"]
    return ADAM if written["type"] == LINE_SEARCH else written


def _with_update(scenario: Scenario, section: Mapping[str, Any]) -> tuple[Scenario | None, str | None]:
    """(the scenario, None), or (None, why not)."""
    root = without(scenario.written, "update", "sweep")
    try:
        root = override(root, ("update",), from_plain(section, Origin("update")))
        if scenario.sections.run.rematerialise is not None:
            # Rules that cannot have steps computed again are run with all of them kept.
            root = override(root, ("run", "rematerialise"), from_plain(None, Origin("run")))
        changed, report = compile_scenario(root, scenario.path)
    except ScenarioError as error:
        return None, str(error)
    return changed, None if changed is not None else "; ".join(dict.fromkeys(p.message for p in report.problems))
