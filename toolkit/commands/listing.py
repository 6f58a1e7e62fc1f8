"""`phinverse list`: what is installed and its options, shipped scenarios, runs so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.commands import console
from toolkit.commands.locate import shipped
from toolkit.core import registry
from toolkit.core.errors import MissingError, ScenarioError
from toolkit.core.options import Options
from toolkit.runs.directory import list_runs
from toolkit.scenario import kinds
from toolkit.scenario.load import load_scenario

Entry = dict[str, Any]


def show(kind: str | None, name: str | None, out: Path, as_json: bool) -> int:
    """Exit code 0; an unknown kind or name is a ScenarioError with a suggestion."""
    listings: dict[str, Callable[[], list[Entry]]] = {
        "pdes": _pdes,
        "rules": lambda: _plugins("update rule"),
        "solvers": _solvers,
        "networks": lambda: _plugins("network"),
        "losses": _losses,
        "samplers": _samplers,
        "scenarios": _scenarios,
        "runs": lambda: _runs(out),
    }
    if kind is None:
        counts = [(word, str(len(listing()))) for word, listing in listings.items()]
        console.result(console.table(counts))
        console.hint("phinverse list pdes")
        return 0
    if kind not in listings:
        raise ScenarioError(f"cannot list {kind!r}{registry.suggestion(kind, list(listings))}")
    entries = listings[kind]()
    if name is not None:
        entries = [entry for entry in entries if entry["name"] == name]
        if not entries:
            known = [entry["name"] for entry in listings[kind]()]
            raise ScenarioError(f"no {name!r} among {kind}{registry.suggestion(name, known)}")
    if as_json:
        console.print_json(entries)
    elif name is not None:
        console.result("\n\n".join(_whole(entry) for entry in entries))
    else:
        console.result(console.table([(e["name"], e.get("for", ""), e["summary"]) for e in entries]))
    console.hint(_next(kind, entries))
    return 0


def _next(kind: str, entries: list[Entry]) -> str:
    if kind == "scenarios":
        return f"phinverse run {entries[0]['name']}" if entries else "phinverse new NAME"
    if kind == "runs":
        return "phinverse plot last" if entries else "phinverse run SCENARIO"
    return f"phinverse list {kind} {entries[0]['name']}" if entries else "phinverse new NAME"


def _whole(entry: Entry) -> str:
    lines = [f"{entry['name']}: {entry['summary']}"]
    lines += [f"{key}: {value}" for key, value in entry.items() if key not in ("name", "summary", "options") and value]
    rows = [(f"  {o['key']}", o["type"], o["default"], o["units"], o["description"]) for o in entry.get("options", ())]
    return "\n".join([*lines, *(["options (key, type, default, units):", console.table(rows)] if rows else [])])


def options(model: type[Options]) -> list[Entry]:
    """Keys of a model with type, default, units and meaning."""
    found = []
    for key, info in model.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        default = "required" if info.is_required() else str(info.default)
        kind = getattr(info.annotation, "__name__", None) if isinstance(info.annotation, type) else None
        found.append(
            {
                "key": key,
                "type": kind or str(info.annotation).replace("typing.", ""),
                "default": default,
                "units": str(extra.get("units", "1")),
                "description": info.description or "",
            }
        )
    return found


def _entry(name: str, plugin: Any, **more: Any) -> Entry:
    return {"name": name, "summary": plugin.summary, **more, "options": options(plugin.options)}


def _plugins(kind: str) -> list[Entry]:
    found = []
    for name in kinds.names(kind):
        try:
            plugin = kinds.load(kind, name)
        except MissingError as error:
            found.append({"name": name, "summary": f"BROKEN: {error}", "options": []})
            continue
        more = {"references": "; ".join(plugin.references)}
        if kind == "update rule":
            more["formula"] = "; ".join(plugin.formula.splitlines())
            more["needs"] = ", ".join(sorted(plugin.needs))
        found.append(_entry(name, plugin, **more))
    return found


def _pdes() -> list[Entry]:
    found = []
    for name in kinds.names("PDE"):
        try:
            pde = kinds.load("PDE", name)
        except MissingError as error:
            found.append({"name": name, "summary": f"BROKEN: {error}", "options": []})
            continue
        entry: Entry = {
            "name": name,
            "summary": pde.summary,
            "equation": pde.equation,
            "dimensions": ", ".join(map(str, pde.dimensions)) or "none (no grid)",
            "boundaries": ", ".join(sorted(pde.boundaries)),
            "samplers": ", ".join(pde.samplers),
            "losses": ", ".join(kinds.losses(pde)),
            "inverse solvers": ", ".join(kinds.inverse_solvers(pde)),
            "references": "; ".join(pde.references),
            "options": options(pde.parameters),
        }
        found.append(entry)
    return found


def _working() -> list[tuple[str, Any]]:
    return [(name, pde) for name in kinds.names("PDE") if (pde := kinds.working("PDE", name)) is not None]


def _solvers() -> list[Entry]:
    found = [
        _entry(name, solver, **{"for": ", ".join(solver.inverts) if solver.inverts else "any PDE"})
        for name in kinds.names("inverse solver")
        if (solver := kinds.working("inverse solver", name)) is not None
    ]
    own = [_entry(n, s, **{"for": pde}) for pde, plugin in _working() for n, s in plugin.inverse_solvers.items()]
    return found + own


def _losses() -> list[Entry]:
    found = [_entry(name, loss, **{"for": "any PDE"}) for name, loss in kinds.LOSSES.items()]
    return found + [_entry(n, loss, **{"for": pde}) for pde, plugin in _working() for n, loss in plugin.losses.items()]


def _samplers() -> list[Entry]:
    return [_entry(n, sampler, **{"for": pde}) for pde, plugin in _working() for n, sampler in plugin.samplers.items()]


def _scenarios() -> list[Entry]:
    return [
        {"name": name, "summary": load_scenario(path).sections.header.description} for name, path in shipped().items()
    ]


def _runs(out: Path) -> list[Entry]:
    found = []
    for run in list_runs(out):
        state = run.record
        reason = f": {state.reason.splitlines()[0]}" if state.reason else ""
        found.append(
            {
                "name": run.id,
                "for": state.scenario,
                "summary": f"{state.status}{reason}",
                "path": str(run.path),
            }
        )
    return found
