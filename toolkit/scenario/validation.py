"""Checks written data against `Options` models and words the findings for the reader of the file.

A section may be made of several models (the keys that all kinds share, and a plugin's own). Types are strict:
text is no number unless it is arithmetic, `yes` is no truth value, 1.5 is no integer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from toolkit.core.options import Options
from toolkit.core.registry import suggestion
from toolkit.scenario.numbers import Evaluate, convert, members
from toolkit.scenario.problems import KeyPath
from toolkit.scenario.report import Report, near

_TYPES = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "none_required": "null",
}
_BOUNDS = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", "≥"), "less_than": ("lt", "<")}
_BOUNDS["less_than_equal"] = ("le", "≤")


@dataclass(frozen=True)
class _Finding:
    path: KeyPath
    expected: str = ""
    """What should stand there; "" where `message` says it all."""
    message: str = ""
    unknown: tuple[str, ...] | None = None
    """For an unknown key: the known ones."""
    missing: bool = False
    literal: bool = False
    """Whether `expected` is a list of words, so that a near miss can be named."""
    member: tuple[KeyPath, Any] | None = None
    """For an alternative of a union: path of the union and name of the alternative."""


def read(
    models: tuple[type[Options], ...], data: Any, path: KeyPath, report: Report, also: tuple[str, ...] = ()
) -> Any:
    """One instance per model from the keys of a section, None for a model with findings.

    Each key goes to the model that has it; keys in `also` belong to somebody else.
    """
    if not isinstance(data, Mapping):
        report.add(path, f"expected a mapping of keys, got {data!r}")
        return (None,) * len(models)
    known = tuple(dict.fromkeys(key for model in models for key in model.model_fields))
    findings = [
        _Finding((*path, key), unknown=tuple(dict.fromkeys((*also, *known))))
        for key in data
        if key not in known and key not in also
    ]
    taken = set(also)
    result = []
    for model in models:
        own = {key: data[key] for key in data if key in model.model_fields and key not in taken}
        taken |= set(model.model_fields)
        instance, wrong = _validate(model, own, path, report.references.evaluate)
        findings += wrong
        result.append(instance)
    _tell(findings, data, path, report)
    return tuple(result)


def _validate(
    model: type[Options], data: dict[str, Any], path: KeyPath, arithmetic: Evaluate
) -> tuple[Options | None, list[_Finding]]:
    findings: list[_Finding] = []

    def fail(where: KeyPath, message: str) -> None:
        findings.append(_Finding((*path, *where), message=message))

    data = {
        key: convert([model.model_fields[key].annotation], value, (key,), fail, arithmetic)
        for key, value in data.items()
    }
    not_numbers = {finding.path for finding in findings}
    try:
        # Strict JSON takes lists for tuples and integers for floats, and converts nothing else.
        instance = model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            finding = _finding(detail, model, data, path)
            if not any(_related(finding.path, bad) for bad in not_numbers):
                findings.append(finding)
        return None, findings
    return instance, findings


def _related(a: KeyPath, b: KeyPath) -> bool:
    """Whether one path leads to or through the other."""
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]


def _finding(error: Any, model: type[Options], data: Any, path: KeyPath) -> _Finding:
    """One pydantic error as a finding; the names of union members are dropped from its location."""
    kind, context = error["type"], error.get("ctx", {})
    location = error["loc"][:-1] if kind == "missing" or error["loc"][-1:] == ("[key]",) else error["loc"]
    inner, tag = _written_part(location, data)
    full = (*path, *inner)
    member = None if tag is None else ((*path, *tag[0]), tag[1])
    if kind == "missing":
        return _Finding((*full, error["loc"][-1]), missing=True, member=member)
    if kind == "extra_forbidden":
        return _Finding(full, unknown=_known_beside(model, inner), member=member)
    if location is not error["loc"]:
        words = tuple(word.strip("' ") for word in context.get("expected", "").replace(" or ", ",").split(","))
        return _Finding(full, unknown=words, member=member)
    if kind in ("value_error", "assertion_error"):
        return _Finding(full, message=str(context.get("error", error["msg"])), member=member)
    return _expected(kind, context, error, model, inner, full, member)


def _expected(
    kind: str, context: Any, error: Any, model: type[Options], inner: KeyPath, full: KeyPath, member: Any
) -> _Finding:
    """A finding that says what should stand at a place."""
    expected = _TYPES.get(kind, "")
    literal = kind in ("literal_error", "enum")
    if kind in _BOUNDS:
        key, sign = _BOUNDS[kind]
        expected = f"a number {sign} {context[key]:g}"
    elif literal:
        expected = context["expected"]
    elif kind == "string_pattern_mismatch":
        field = model.model_fields.get(str(inner[0])) if inner else None
        expected = (field.description if field and field.description else None) or context["pattern"]
    elif kind in ("too_short", "too_long"):
        bound = context["min_length"] if kind == "too_short" else context["max_length"]
        expected = f"{'at least' if kind == 'too_short' else 'at most'} {bound} entries"
    message = "" if expected else error["msg"]
    return _Finding(full, expected=expected, message=message, literal=literal, member=member)


def _written_part(location: tuple[Any, ...], data: Any) -> tuple[KeyPath, tuple[KeyPath, Any] | None]:
    """The part of a location that leads through the data, and the first name of an alternative in it."""
    path: KeyPath = ()
    member = None
    for part in location:
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_list or (isinstance(data, Mapping) and part in data):
            data = data[part]
        else:
            member = member or (path, part)
            continue
        path = (*path, part)
    return path, member


def _meant(findings: list[_Finding]) -> list[_Finding]:
    """Findings without those of alternatives that cannot have been meant.

    An alternative with findings only below the union fits in kind (a mapping where one may stand); of those
    the one with the fewest findings was meant. Without any, all alternatives are named.
    """
    alternatives: dict[KeyPath, dict[Any, list[_Finding]]] = {}
    for finding in findings:
        if finding.member:
            alternatives.setdefault(finding.member[0], {}).setdefault(finding.member[1], []).append(finding)
    result = [finding for finding in findings if not finding.member]
    for union, members_found in alternatives.items():
        fitting = [group for group in members_found.values() if all(f.path != union for f in group)]
        if fitting:
            result += min(fitting, key=len)
        else:
            result += [finding for group in members_found.values() for finding in group if finding.path == union]
    return result


def _known_beside(model: type[BaseModel], path: KeyPath) -> tuple[str, ...]:
    """Keys that are known where the last key of the path stands."""
    kinds: list[Any] = [model]
    for part in path[:-1]:
        found = [k.model_fields[part].annotation for k in kinds if _is_model(k) and part in k.model_fields]
        kinds = [member for annotation in found for member in members(annotation)]
    return tuple(key for kind in kinds if _is_model(kind) for key in kind.model_fields)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _tell(findings: list[_Finding], data: Any, path: KeyPath, report: Report) -> None:
    """Report findings: alternatives of a union in one sentence, a misspelt required key once."""
    findings = _meant(findings)
    misspelt = {
        (*finding.path[:-1], *get_close_matches(str(finding.path[-1]), finding.unknown, n=1))
        for finding in findings
        if finding.unknown is not None
    }
    by_path: dict[KeyPath, list[_Finding]] = {}
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding)
    for where, group in by_path.items():
        first = group[0]
        if first.unknown is not None:
            report.add(where, "unknown key" + suggestion(str(where[-1]), first.unknown), at_key=True)
        elif first.missing:
            if where not in misspelt:
                report.add(where, "required key is missing")
        elif any(f.expected for f in group):
            report.add(where, _expectation(group, _value_at(data, where[len(path) :])))
        else:
            report.add(where, first.message)


def _expectation(group: list[_Finding], value: Any) -> str:
    expected = " or ".join(dict.fromkeys(f.expected for f in group if f.expected))
    text = "null" if value is None else repr(value) if not isinstance(value, bool) else str(value).lower()
    words = [w.strip("'") for f in group if f.literal for w in f.expected.replace(" or ", ", ").split(", ")]
    hint = near(value, words) if isinstance(value, str) else ""
    return f"expected {expected}, got {text[:80]}{hint}"


def _value_at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data
