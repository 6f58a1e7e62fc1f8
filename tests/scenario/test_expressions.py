"""Arithmetic in place of numbers: what it may say and what it must not."""

from __future__ import annotations

import math

import pytest

from toolkit.scenario.expressions import evaluate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2*pi/64", 2 * math.pi / 64),
        ("1/32", 1 / 32),
        ("-(1 + 2) * 3", -9),
        ("+4", 4),
        ("128/2", 64),
        ("2**10", 1024),
        ("sqrt(2)", math.sqrt(2)),
        ("e**-1", math.exp(-1)),
        ("1e-3", 1e-3),
        (" 7 ", 7),
    ],
)
def test_evaluates_arithmetic(text, expected):
    value = evaluate(text)

    # The same operations in the same order: no tolerance is needed.
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("foo", "unknown name 'foo'"),
        ("__import__('os')", "not arithmetic"),
        ("().__class__", "not arithmetic"),
        ("[1]", "not arithmetic"),
        ("'a'*3", "not arithmetic"),
        ("True", "not arithmetic"),
        ("1j", "not arithmetic"),
        ("1 if 1 else 2", "not arithmetic"),
        ("lambda: 1", "not arithmetic"),
        ("(x := 1)", "not arithmetic"),
        ("sqrt(1, 2)", "not arithmetic"),
        ("sqrt(x=1)", "not arithmetic"),
        ("abs(1)", "not arithmetic"),
        ("7 // 2", "not arithmetic"),
        ("1 << 9", "not arithmetic"),
        ("2 pi", "not arithmetic"),
        ("", "not arithmetic"),
        ("1/0", "division by zero"),
        ("0**-1", "division by zero"),
        ("sqrt(-1)", "root of a negative"),
        ("(-8)**0.5", "root of a negative"),
        ("9**9**9", "exponent beyond"),
        ("1**1001", "exponent beyond"),
        ("9.9**999", "too large"),
        ("(10**999)**999", "too large"),
        ("1e999", "not a finite number"),
        ("1e308*10", "not a finite number"),
        ("1" * 201, "longer than"),
        ("(" * 99 + "1" + ")" * 100, "not arithmetic"),
    ],
)
def test_refuses_what_is_not_a_finite_number(text, reason):
    with pytest.raises(ValueError, match=reason):
        evaluate(text)
