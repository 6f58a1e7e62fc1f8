"""Numbers written as arithmetic: `2*pi/64`, `1/32`, `sqrt(2)`.

The text is parsed by Python's own `ast` and walked with an allow-list; nothing is ever executed. Allowed
are numbers, + - * / **, parentheses, the constants pi and e, sqrt, and dotted keys (`pde.xi`) where the caller
says what they stand for. Length, depth and exponents are bounded, so that no text can take long. A quotient of
integers that is exact stays an integer (`128/2` is 64).
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

MAX_LENGTH = 200
MAX_EXPONENT = 1000
CONSTANTS = {"pi": math.pi, "e": math.e}

Number = int | float
Lookup = Callable[[str], Number]
"""The number that a dotted key stands for; ValueError with a sentence if there is none."""


def _divide(a: Number, b: Number) -> Number:
    """a / b, kept an integer where that is exact, so that `128/2` may count cells."""
    if isinstance(a, int) and isinstance(b, int) and b != 0 and a % b == 0:
        return a // b
    return a / b


def _power(a: Number, b: Number) -> Number:
    # Integer powers may grow without limit, floats overflow at once: let the large ones overflow.
    if abs(b) > MAX_EXPONENT:
        raise ValueError(f"exponent beyond {MAX_EXPONENT}")
    result = a**b if isinstance(a, int) and isinstance(b, int) and abs(a) <= MAX_EXPONENT else float(a) ** b
    if isinstance(result, complex):
        raise ValueError("root of a negative number")
    return result


_BINARY: dict[type, Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.Pow: _power,
}


def evaluate(text: str, lookup: Lookup | None = None) -> Number:
    """The value of an arithmetic text; ValueError with a sentence if it is not one, or not finite."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    try:
        value = _walk(_parsed(text), lookup)
        finite = math.isfinite(value)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("not arithmetic") from error
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error
    except OverflowError as error:
        raise ValueError("too large a number") from error
    if not finite:
        raise ValueError("not a finite number")
    return value


def refers(text: str) -> bool:
    """Whether a text that `evaluate` takes names a key."""
    return any(isinstance(node, ast.Attribute) for node in ast.walk(_parsed(text)))


def _parsed(text: str) -> ast.expr:
    with warnings.catch_warnings():
        # Python warns about texts like `1is`, which are refused in any case.
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(text.strip(), mode="eval").body


def _walk(node: ast.expr, lookup: Lookup | None) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.Attribute() if lookup is not None and (key := _key(node)):
            return lookup(key)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_walk(operand, lookup)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _walk(operand, lookup)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_walk(left, lookup), _walk(right, lookup))
        case ast.Call(func=ast.Name(id="sqrt"), args=[argument], keywords=[]):
            value = _walk(argument, lookup)
            if value < 0:
                raise ValueError("root of a negative number")
            return math.sqrt(value)
        case ast.Name(id=name):
            raise ValueError(f"not arithmetic: unknown name {name!r} (pi, e and sqrt are known)")
        case _:
            allowed = "only numbers, + - * / **, parentheses, pi, e and sqrt"
            keys = " and dotted keys of the scenario" if lookup else ""
            raise ValueError(f"not arithmetic: {allowed}{keys} are allowed")


def _key(node: ast.expr) -> str:
    """The dotted key that a chain of attributes spells; "" if it begins with anything but a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""
