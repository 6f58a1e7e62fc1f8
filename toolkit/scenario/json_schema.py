"""JSON Schema (draft 7) of scenario files with the plugins that are installed, for completion in editors.

Every section with a `type:` is a `oneOf` over its kinds, each with its own keys, beside the bare words. A
file that extends another lacks keys on purpose: then nothing is required. Numbers may be written as
arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from toolkit.core.optimizers import OPTIMIZERS
from toolkit.core.options import Options
from toolkit.physics.losses import LOSSES
from toolkit.physics.plugin import PDEPlugin
from toolkit.scenario import kinds, schema
from toolkit.scenario.learning import SCHEDULES

Schema = dict[str, Any]
Kinds = list[tuple[str, type[Options]]]
"""Names with their options; a name may come twice, from two PDEs."""
DEFINITIONS = "#/definitions/"
_OPERAND = r"(?:pi|e|sqrt|[0-9.]+(?:[eE][-+]?[0-9]+)?|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)"
ARITHMETIC = {
    "type": "string",
    "pattern": rf"^[-+*/() ]*(?:{_OPERAND}(?:[-+*/() ]+|$))+$",
    "description": "as 2*pi/64 or, with another key, 1e-2/pde.xi",
}


def json_schema() -> Schema:
    """The schema of a scenario file."""
    definitions = {"arithmetic": ARITHMETIC, "schedule": _schedule(), "optimizer": _optimizer()}
    sections = _sections()
    inherits = {"required": ["extends"], "properties": {"extends": {"type": "string"}}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "phinverse scenario",
        "definitions": definitions | {f"relaxed_{name}": _relaxed(p) for name, p in definitions.items()},
        "type": "object",
        "properties": {name: {} for name in sections},
        "additionalProperties": False,
        "if": inherits,
        "then": {"properties": {name: _relaxed(section) for name, section in sections.items()}},
        "else": {"properties": sections, "required": ["name", "pde"]},
    }


def _sections() -> Schema:
    pdes = {name: pde for name in kinds.names("PDE") if (pde := kinds.working("PDE", name))}
    header = _model(schema.HeaderOptions)["properties"]
    loss = _typed(_losses(pdes), schema.LossOptions, "a loss term")
    return {
        **header,
        "extends": {"type": ["string", "null"], "description": "another scenario file, relative to this one"},
        "grid": _nullable(_model(schema.GridOptions)),
        "pde": _typed([(name, pde.parameters) for name, pde in pdes.items()], None, "the equation"),
        "time": _model(schema.TimeOptions),
        "controls": _named(_model(schema.ControlOptions), "what is unknown, by name"),
        "data": _nullable(_data(pdes)),
        "networks": _named(_networks(), "networks, by name"),
        "loss": {"anyOf": [loss, {"type": "array", "items": loss, "minItems": 1}]},
        "update": _nullable(_update(pdes)),
        "train": _model(schema.TrainOptions),
        "run": _model(schema.RunOptions),
        "output": _model(schema.OutputOptions),
        "sweep": {
            "type": ["object", "null"],
            "description": "axes that multiply: dotted key -> values, or name -> labelled variants",
            "additionalProperties": {"anyOf": [{"type": "array", "minItems": 1}, {"type": "object"}]},
        },
    }


def _losses(pdes: Mapping[str, PDEPlugin]) -> Kinds:
    found = [(name, plugin.options) for name, plugin in LOSSES.items()]
    return found + [(name, plugin.options) for pde in pdes.values() for name, plugin in pde.losses.items()]


def _networks() -> Schema:
    networks = [(name, kinds.working("network", name)) for name in kinds.names("network")]
    found = [(name, network.options) for name, network in networks if network]
    return _typed(found, schema.NetworkOptions, "a network", bare=False)


def _data(pdes: Mapping[str, PDEPlugin]) -> Schema:
    samplers = [(name, s.options) for pde in pdes.values() for name, s in pde.samplers.items()]
    result = _typed(samplers, schema.DataOptions, "samples to learn from")
    result["anyOf"][-1]["oneOf"].append(_kind("file", _model(schema.FileDataOptions)))
    return result


def _update(pdes: Mapping[str, PDEPlugin]) -> Schema:
    rules = [(name, kinds.working("update rule", name)) for name in kinds.names("update rule")]
    result = _typed([(name, rule.options) for name, rule in rules if rule], schema.UpdateOptions, "how to learn")
    solvers = {(name, solver.options) for pde in pdes.values() for name, solver in kinds.inverse_solvers(pde).items()}
    solver_schema = _typed(list(solvers), None, "local inverse of the physics")
    for rule in result["anyOf"][-1]["oneOf"]:
        rule["properties"]["optimizer"] = {"$ref": DEFINITIONS + "optimizer"}
        if "inverse_solver" in rule["properties"]:
            rule["properties"]["inverse_solver"] = solver_schema
    return result


def _schedule() -> Schema:
    return _typed(list(SCHEDULES.items()), None, "learning rate that changes with the step", bare=False)


def _optimizer() -> Schema:
    number = _arithmetic({"type": "number", "exclusiveMinimum": 0, "description": "learning rate"})
    result = _typed(list(OPTIMIZERS.items()), None, "takes the step")
    for kind in result["anyOf"][-1]["oneOf"]:
        if "learning_rate" in kind["properties"]:
            alternatives = [number, {"$ref": DEFINITIONS + "schedule"}, {"type": "null"}]
            kind["properties"]["learning_rate"] = {"anyOf": alternatives}
    return result


def _typed(found: Kinds, common: type[Options] | None, description: str, bare: bool = True) -> Schema:
    """A section with `type:`: the bare words of kinds without required keys, or one object per kind."""
    shared = _model(common) if common else {"properties": {}}
    objects: dict[str, list[Schema]] = {}
    words: list[str] = []
    for name, options in sorted(found, key=lambda pair: pair[0]):
        own = _model(options)
        properties = {**own["properties"], **shared["properties"]}
        required = [*shared.get("required", []), *own.get("required", [])]
        objects.setdefault(name, []).append(_kind(name, {"properties": properties, "required": required}))
        words += [] if required else [name]
    alternatives = [same[0] if len(same) == 1 else {"anyOf": same} for same in objects.values()]
    union: list[Schema] = [{"enum": sorted(set(words))}] if bare and words else []
    return {"anyOf": [*union, {"oneOf": alternatives}], "description": description}


def _kind(name: str, section: Schema) -> Schema:
    required = [key for key in section.get("required", []) if key != "type"]
    return {
        "type": "object",
        "title": name,
        "properties": {
            "type": {"const": name},
            **{k: v for k, v in section["properties"].items() if k != "type"},
        },
        "required": ["type", *required],
        "additionalProperties": False,
    }


def _named(entry: Schema, description: str) -> Schema:
    return {"type": ["object", "null"], "description": description, "additionalProperties": entry}


def _nullable(section: Schema) -> Schema:
    return {"anyOf": [section, {"type": "null"}]}


def _model(model: type[Options]) -> Schema:
    """The schema of an options model, without references and with numbers that may be arithmetic."""
    raw = model.model_json_schema(mode="validation")
    definitions = raw.pop("$defs", {})
    return _arithmetic(_draft7(raw, definitions))


def _draft7(node: Any, definitions: Mapping[str, Any]) -> Any:
    """References written out, and `prefixItems` (unknown to draft 7) as `items`."""
    if isinstance(node, list):
        return [_draft7(entry, definitions) for entry in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = deepcopy(definitions[node["$ref"].rpartition("/")[2]])
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return _draft7({**target, **beside}, definitions)
    result = {key: _draft7(value, definitions) for key, value in node.items() if key != "discriminator"}
    if "prefixItems" in result:
        result["items"] = result.pop("prefixItems")
    return result


def _arithmetic(node: Any) -> Any:
    """Wherever a number may stand, arithmetic text may stand too."""
    if isinstance(node, list):
        return [_arithmetic(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    result = {key: value if key == "default" else _arithmetic(value) for key, value in node.items()}
    if node.get("type") in ("number", "integer"):
        outer = {key: result.pop(key) for key in ("description", "default", "title", "units") if key in result}
        return {"anyOf": [result, {"$ref": DEFINITIONS + "arithmetic"}], **outer}
    return result


def _relaxed(node: Any) -> Any:
    """The same schema with nothing required, not even the `type` that would tell kinds apart."""
    if isinstance(node, list):
        return [_relaxed(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return {"$ref": node["$ref"].replace(DEFINITIONS, DEFINITIONS + "relaxed_")}
    # The value of the keyword is a list; a mapping under this name is a property called so.
    kept = {key: value for key, value in node.items() if key != "required" or not isinstance(value, list)}
    result = {key: _relaxed(value) for key, value in kept.items()}
    if isinstance(result.get("oneOf"), list):
        # Without their `type` several kinds may fit.
        result["anyOf"] = result.pop("oneOf")
    return result
