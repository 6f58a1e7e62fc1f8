"""The schema for editors, judged by a small evaluator of the draft-7 keywords that it uses."""

from __future__ import annotations

import re
from typing import Any

import pytest

from toolkit.scenario.json_schema import json_schema
from toolkit.scenario.load import load_scenario
from toolkit.scenario.yaml_loader import read_text

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
KNOWN = {
    *("$schema", "title", "definitions", "type", "properties", "additionalProperties", "if", "then", "else"),
    *(
        "required",
        "anyOf",
        "oneOf",
        "enum",
        "const",
        "description",
        "default",
        "units",
        "items",
        "$ref",
        "pattern",
    ),
    *(
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
    ),
    *("minProperties", "propertyNames"),
}


def valid(value: Any, schema: Any, root: Any) -> bool:
    """Whether a value satisfies a schema; a keyword that is not known here fails the test."""
    if isinstance(schema, bool):
        return schema
    assert set(schema) <= KNOWN, set(schema) - KNOWN
    if "$ref" in schema:
        return valid(value, root["definitions"][schema["$ref"].rpartition("/")[2]], root)
    if "if" in schema:
        branch = "then" if valid(value, schema["if"], root) else "else"
        if not valid(value, schema[branch], root):
            return False
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        is_bool = isinstance(value, bool)
        if not any(isinstance(value, TYPES[k]) and (not is_bool or k == "boolean") for k in kinds):
            return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "anyOf" in schema and not any(valid(value, s, root) for s in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(valid(value, s, root) for s in schema["oneOf"]) != 1:
        return False
    return _bounds(value, schema) and _parts(value, schema, root)


def _bounds(value: Any, schema: Any) -> bool:
    if isinstance(value, str):
        return "pattern" not in schema or re.search(schema["pattern"], value) is not None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (
            value >= schema.get("minimum", value)
            and value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        )
    return True


def _parts(value: Any, schema: Any, root: Any) -> bool:
    if isinstance(value, dict):
        if not set(schema.get("required", ())) <= set(value):
            return False
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        names = schema.get("propertyNames", True)
        return all(valid(v, properties.get(k, others), root) and valid(k, names, root) for k, v in value.items())
    if isinstance(value, list) and "items" in schema:
        items = schema["items"]
        if isinstance(items, list):
            return all(valid(v, s, root) for v, s in zip(value, items, strict=False))
        return all(valid(v, items, root) for v in value)
    return True


@pytest.fixture
def accepts(write):
    schema = json_schema()

    def accepts(*changes: tuple[str, str]) -> bool:
        return valid(read_text(write(*changes).read_text(), "f.yaml").plain(), schema, schema)

    return accepts


GOOD = [
    [],
    [("type: sip\n  inverse_solver: spectral", "type: dp")],
    [("inverse_solver: spectral", "inverse_solver: {type: spectral, noise: 1e-3}")],
    [("{type: adam, learning_rate: 1e-3}", "adam")],
    [("learning_rate: 1e-3", "learning_rate: {type: cosine, initial: 0.1, steps: 5}")],
    [("learning_rate: 1e-3", "learning_rate: 1/32")],
    [("{type: l2, on: final.u}", "l2")],
    [("{type: l2, on: final.u}", "[{type: l2, on: final.u}, mean]")],
    [("periodic", "{x: periodic, y-: zero, y+: 1}")],
    [("train: {", "run: {precision: float64}\ntrain: {")],
    [("train: {", "sweep: {run.seed: [1, 2]}\ntrain: {")],
    [("name: warm", "name: warm\nextends: null")],
    # a file that extends another may leave out what the other says
    [
        ("name: warm", "extends: other.yaml"),
        ("pde: {type: warm, diffusivity: 1/32}", "pde: {coupling: [1, 2]}"),
    ],
    [
        ("name: warm", "extends: other.yaml"),
        (
            "type: sip\n  inverse_solver: spectral\n  optimizer: {type: adam, ",
            "optimizer: {weight_decay: 0, ",
        ),
    ],
]
BAD = [
    [("name: warm\n", "")],
    [("time:", "tme:")],
    [("type: warm", "type: wram")],
    [(", diffusivity: 1/32", "")],
    [("diffusivity", "difusivity")],
    [("steps: 2", "steps: two")],
    [("x: 16", "x: -16")],
    [("type: adam", "type: sgd, beta1: 0.5")],
    [("learning_rate: 1e-3", "learning_rate: {type: cosine}")],
    [("  inverse_solver: spectral\n", "")],
    [("update:\n  type: sip", "update: sip\nx:\n  type: sip")],
    [("{type: warm, diffusivity: 1/32}", "warm")],
    [("{type: warm, diffusivity: 1/32}", "{type: warm, diffusivity: 1, coupling: [4, ten]}")],
    [("name: warm", "extends: other.yaml"), ("steps: 5", "stps: 5")],
    [("name: warm", "extends: other.yaml"), ("levels: 2", "levles: 2")],
]


@pytest.mark.parametrize("changes", GOOD)
def test_accepts_what_the_toolkit_accepts(accepts, changes):
    assert accepts(*changes)


@pytest.mark.parametrize("changes", BAD)
def test_marks_what_the_toolkit_refuses(accepts, changes):
    assert not accepts(*changes)


def test_the_resolved_scenario_fits_the_schema(write):
    schema = json_schema()

    assert valid(read_text(load_scenario(write()).to_yaml(), "f.yaml").plain(), schema, schema)


def test_keys_have_descriptions_and_units():
    pde = json_schema()["else"]["properties"]["pde"]["anyOf"][-1]["oneOf"]
    warm = next(kind for kind in pde if kind["title"] == "warm")

    assert warm["properties"]["diffusivity"]["description"] == "diffusivity"
    assert warm["properties"]["diffusivity"]["units"] == "length² / time"
