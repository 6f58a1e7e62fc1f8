"""Turns arithmetic text into numbers, where and only where a model expects a number.

The annotation decides: text stays text where text or that very word is allowed (`boundary: periodic`);
elsewhere it has to be arithmetic. A float that is exact becomes an integer where only integers are allowed
(`steps: 1e4`).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from toolkit.scenario.expressions import Number, evaluate
from toolkit.scenario.problems import KeyPath

Fail = Callable[[KeyPath, str], None]
Evaluate = Callable[[str], Number]
"""The value of arithmetic text; ValueError with a sentence if it has none."""


def members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without `Annotated` and nested unions."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [m for argument in get_args(annotation) for m in members(argument)]
    return [annotation]


def convert(annotations: list[Any], value: Any, path: KeyPath, fail: Fail, arithmetic: Evaluate = evaluate) -> Any:
    """The value with arithmetic evaluated as these alternatives allow; `fail` hears of what is none."""
    kinds = [m for annotation in annotations for m in members(annotation)]
    if isinstance(value, str):
        return _from_text(kinds, value, path, fail, arithmetic)
    if isinstance(value, float) and int in kinds and float not in kinds:
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [convert(_items(kinds, i), entry, (*path, i), fail, arithmetic) for i, entry in enumerate(value)]
    if isinstance(value, dict):
        return {
            key: convert(_entries(kinds, key), entry, (*path, key), fail, arithmetic) for key, entry in value.items()
        }
    return value


def _from_text(kinds: list[Any], text: str, path: KeyPath, fail: Fail, arithmetic: Evaluate) -> Any:
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if text in words or str in kinds or Any in kinds or not {int, float} & set(kinds):
        return text
    try:
        return convert(kinds, arithmetic(text), path, fail)
    except ValueError as error:
        if not words:
            expected = "a number" if float in kinds else "an integer"
            fail(path, f"expected {expected} or arithmetic such as 2*pi/64, got {text!r}: {error}")
        return text


def _items(kinds: list[Any], index: int) -> list[Any]:
    """What a list may hold at an index."""
    result: list[Any] = []
    for kind in kinds:
        arguments = get_args(kind)
        if get_origin(kind) is tuple and arguments[-1] is not Ellipsis:
            result += arguments[index : index + 1]
        elif arguments and get_origin(kind) not in (Literal, dict):
            result.append(arguments[0])
    return result


def _entries(kinds: list[Any], key: str) -> list[Any]:
    """What a mapping may hold at a key."""
    result: list[Any] = []
    for kind in kinds:
        origin = get_origin(kind)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            result.append(get_args(kind)[1])
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields:
            result.append(kind.model_fields[key].annotation)
    return result
