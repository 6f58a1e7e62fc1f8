"""From written data to typed sections: looks up every `type:`, validates every key, fills in every default.

Nothing is built and nothing runs; how the sections fit together is judged in `checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.core.options import Options
from toolkit.core.registry import suggestion
from toolkit.physics.grid import Grid
from toolkit.physics.plugin import FieldSpec, PDEPlugin
from toolkit.scenario import grids, kinds, schema
from toolkit.scenario.choose import choose, dump, load
from toolkit.scenario.learning import resolve_loss, resolve_update
from toolkit.scenario.report import Report
from toolkit.scenario.sample_source import is_source
from toolkit.scenario.sections import Control, DataChoice, NetworkChoice, PDEChoice, Sections
from toolkit.scenario.validation import read

HEADER = tuple(schema.HeaderOptions.model_fields)
PLAIN: Mapping[str, type[Options]] = {
    "time": schema.TimeOptions,
    "train": schema.TrainOptions,
    "run": schema.RunOptions,
    "output": schema.OutputOptions,
}
"""Sections without any `type:`."""


def resolve(report: Report) -> tuple[Sections | None, dict[str, Any]]:
    """(typed sections, resolved plain data) of a report's scenario; no sections if there are findings."""
    written = report.root.plain()
    resolved: dict[str, Any] = dict.fromkeys(schema.KEYS)
    parts: dict[str, Any] = _plain_sections(written, resolved, report)
    pde, plugin, grid = _physics(written, resolved, report)
    fields, actions = _fields(pde, grid)
    parts["controls"] = _controls(written, resolved, report)
    parts["data"] = _data(written, resolved, plugin, report)
    parts["networks"] = _networks(written, resolved, report)
    parts["loss"] = resolve_loss(written, resolved, plugin, fields, report)
    parts["update"] = resolve_update(written, resolved, plugin, report)
    parts["sweep"] = _sweep(written, resolved, report)
    if report.problems or pde is None:
        return None, {}
    # In the order of the contract; what is absent stays out, so that the result reads like a file.
    data = {key: resolved[key] for key in schema.KEYS if resolved[key] is not None}
    return Sections(grid=grid, pde=pde, fields=fields, actions=actions, **parts), data


def _plain_sections(written: dict[str, Any], resolved: dict[str, Any], report: Report) -> dict[str, Any]:
    for key in written:
        if key not in schema.KEYS:
            report.add((key,), "unknown key" + suggestion(key, schema.KEYS), at_key=True)
    header_data = {key: written[key] for key in HEADER if key in written}
    (header,) = read((schema.HeaderOptions,), header_data, (), report)
    resolved.update(dump(header))
    parts: dict[str, Any] = {"header": header}
    for name, model in PLAIN.items():
        data = written.get(name)
        (parts[name],) = read((model,), {} if data is None else data, (name,), report)
        resolved[name] = dump(parts[name])
    return parts


def _physics(
    written: dict[str, Any], resolved: dict[str, Any], report: Report
) -> tuple[PDEChoice | None, PDEPlugin | None, Grid | None]:
    """(PDE if it can be used, its plugin if there is such a PDE, grid)."""
    grid, sound = None, True
    if written.get("grid") is not None:
        (options,) = read((schema.GridOptions,), written["grid"], ("grid",), report)
        grid = grids.build_grid(options, report) if options else None
        sound = grid is not None
        resolved["grid"] = grids.dump_grid(options, grid) if options and grid else None
    if written.get("pde") is None:
        report.add(("pde",), f"required key is missing; PDEs: {', '.join(kinds.names('PDE')) or 'none'}")
        return None, None, None
    name = choose(written["pde"], ("pde",), kinds.names("PDE"), "PDE", report)
    if name is None:
        return None, None, None
    plugin = load("PDE", name, ("pde",), report)
    (parameters,) = read((plugin.parameters,), written["pde"], ("pde",), report, also=("type",))
    fitting = sound and grids.fits(plugin, grid, report)
    if parameters is None or not fitting:
        return None, plugin, None
    resolved["pde"] = {"type": name, **dump(parameters)}
    return PDEChoice(name, parameters, plugin), plugin, grid


def _fields(pde: PDEChoice | None, grid: Grid | None) -> tuple[dict[str, FieldSpec], dict[str, FieldSpec]]:
    """(fields of the state, actions) by name."""
    if pde is None:
        return {}, {}
    described = (pde.plugin.fields(pde.options, grid), pde.plugin.actions(pde.options, grid))
    fields, actions = ({spec.name: spec for spec in specs} for specs in described)
    return fields, actions


def _named(written: dict[str, Any], section: str, report: Report) -> dict[str, Any]:
    """The entries of a section of named things."""
    entries = written.get(section)
    if entries is None:
        return {}
    if not isinstance(entries, Mapping):
        report.add((section,), f"expected a mapping of names to {section}, got {entries!r}")
        return {}
    for name in entries:
        if not name.isidentifier() or name.startswith("_"):
            report.add((section, name), "expected a name of letters, digits and _", at_key=True)
    return dict(entries)


def _controls(written: dict[str, Any], resolved: dict[str, Any], report: Report) -> dict[str, Control]:
    result, data = {}, {}
    for name, entry in _named(written, "controls", report).items():
        (options,) = read((schema.ControlOptions,), entry, ("controls", name), report)
        if options is not None:
            result[name] = Control(name, options.acts_on, options.initial)
            data[name] = dump(options)
    resolved["controls"] = data or None
    return result


def _data(
    written: dict[str, Any], resolved: dict[str, Any], pde: PDEPlugin | None, report: Report
) -> DataChoice | None:
    section = written.get("data")
    # Which samplers there are is only known with the PDE, whose own findings come first.
    if section is None or (pde is None and not (isinstance(section, Mapping) and section.get("type") == "file")):
        return None
    samplers = pde.samplers if pde else {}
    name = choose(section, ("data",), [*samplers, "file"], "sampler", report)
    if name is None:
        return None
    if name == "file":
        return _file(section, resolved, report)
    sampler = samplers[name]
    common, options = read((schema.DataOptions, sampler.options), section, ("data",), report, also=("type",))
    if common is None or options is None:
        return None
    resolved["data"] = {"type": name, **dump(common, options)}
    train = None if common.train == "infinite" else common.train
    return DataChoice(name, train, common.validation, common.seed, options, sampler, shuffle=common.shuffle)


def _file(section: Mapping[str, Any], resolved: dict[str, Any], report: Report) -> DataChoice | None:
    (options,) = read((schema.FileDataOptions,), section, ("data",), report, also=("type",))
    if options is None:
        return None
    origin = report.place(("data", "path"))
    # Relative to the file that says it; the resolved scenario must find it from anywhere.
    path = (Path(origin.source).parent if origin.line else Path()).joinpath(options.path).resolve()
    if not is_source(path):
        report.add(("data", "path"), f"no such file: {path}")
    resolved["data"] = {"type": "file", **dump(options), "path": str(path)}
    return DataChoice("file", options.train, options.validation, options.seed, path=path, shuffle=options.shuffle)


def _networks(written: dict[str, Any], resolved: dict[str, Any], report: Report) -> dict[str, NetworkChoice]:
    result, data = {}, {}
    for name, section in _named(written, "networks", report).items():
        path = ("networks", name)
        kind = choose(section, path, kinds.names("network"), "network", report)
        if kind is None:
            continue
        plugin = load("network", kind, path, report)
        common, options = read((schema.NetworkOptions, plugin.options), section, path, report, also=("type",))
        if common is None or options is None:
            continue
        source = common.input or ("state" if common.every_step else "target")
        inputs = (source,) if isinstance(source, str) else tuple(source)
        output = (common.output,) if isinstance(common.output, str) else tuple(common.output)
        result[name] = NetworkChoice(name, kind, inputs, output, common.every_step, options, plugin)
        data[name] = {"type": kind, **dump(common, options), "input": source}
    resolved["networks"] = data or None
    return result


def _sweep(written: dict[str, Any], resolved: dict[str, Any], report: Report) -> dict[str, Any]:
    """Axes as written; their values are checked where they act, cell by cell."""
    axes = _axes(written.get("sweep"), report)
    resolved["sweep"] = axes or None
    return axes


def _axes(section: Any, report: Report) -> dict[str, Any]:
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        report.add(("sweep",), f"expected a mapping of axes, got {section!r}")
        return {}
    for axis, values in section.items():
        path = ("sweep", axis)
        if isinstance(values, list) and values:
            if axis.split(".")[0] not in set(schema.KEYS) - {"name", "extends", "sweep"}:
                message = f"an axis with a list is a dotted key of the scenario{suggestion(axis, schema.KEYS)}"
                report.add(path, message, at_key=True)
        elif isinstance(values, Mapping) and values:
            for label, variant in values.items():
                if variant is not None and not isinstance(variant, Mapping):
                    report.add((*path, label), f"expected a mapping of overrides, got {variant!r}")
        else:
            report.add(path, "expected a list of values or labelled variants, at least one", at_key=True)
    return dict(section)
