"""YAML 1.2 numbers, positions, and everything that must be refused."""

from __future__ import annotations

import math

import pytest

from toolkit.core.errors import ScenarioError
from toolkit.scenario.problems import Origin
from toolkit.scenario.yaml_loader import MAX_BYTES, Node, read_file, read_text, write_text

NUMBERS = [
    ("1e-3", 1e-3),
    ("1E5", 1e5),
    ("1.", 1.0),
    (".5", 0.5),
    ("-0.5e+2", -50.0),
    ("017", 17),
    ("0o17", 15),
    ("0x1F", 31),
    ("+12", 12),
    ("-0", 0),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("true", True),
    ("FALSE", False),
    ("~", None),
    ("", None),
    ("null", None),
    ("yes", "yes"),
    ("off", "off"),
    ("on", "on"),
    ("n", "n"),
    ("1_000", "1_000"),
    ("190:20:30", "190:20:30"),
    ("2026-11-21", "2026-11-21"),
    ("0b11", "0b11"),
    ("1e", "1e"),
    ("tRUE", "tRUE"),
    ("'1'", "1"),
    ("!!str 1", "1"),
    ("!!float 1", 1.0),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, expected):
    value = read_text(f"key: {text}", "f.yaml").plain()["key"]

    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("value", [*(v for _, v in NUMBERS), "1e-3", "0o17", "yes", "a: b", "# x", "é", " x"])
def test_written_text_reads_back_unchanged(value):
    data = {"one": value, "two": [value, value], "three": [{"four": value}]}

    assert read_text(write_text(data), "f.yaml").plain() == data


def test_every_key_and_value_has_its_position():
    root = read_text("a: 1\nb:\n  c: [x,\n    y]\n", "f.yaml")

    def node(*path: str | int) -> Node:
        found = root.at(path)
        assert found is not None
        return found

    assert str(node("b").key) == "f.yaml:2"
    assert node("b", "c", 1).origin == Origin("f.yaml", 4, 5)
    assert node("b", "c").key == Origin("f.yaml", 3, 3)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
)

REFUSED = [
    ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: a: duplicate key; the first one is in line 1"),
    ("a: {b: 1, b: 2}\n", "f.yaml:1:11: a.b: duplicate key"),
    (BOMB, "aliases expand to more than 10000 values"),
    ("a: &a [1, *a]\n", "f.yaml:1:4: a.1: an alias must not contain itself"),
    ("a: !!python/object:os.system {}\n", "f.yaml:1:4: a: tag '!!python/object:os.system' is not allowed"),
    ("a: !!python/object/apply:os.system ['ls']\n", "f.yaml:1:4: a: tag"),
    ("a: !mine 1\n", "f.yaml:1:4: a: tag '!mine' is not allowed; a scenario is plain data"),
    ("a: !!set {x}\n", "f.yaml:1:4: a: tag '!!set' is not allowed"),
    ("a: !!binary aGk=\n", "f.yaml:1:4: a: tag '!!binary' is not allowed"),
    ("a: !!int one\n", "f.yaml:1:4: a: 'one' is not of type int"),
    ("a: " + "[" * 60 + "]" * 60, "f.yaml:1:53: not YAML: nested deeper than 50 levels"),
    ("a: 1\n---\nb: 2\n", "f.yaml:2:1: several documents in one file; expected one scenario"),
    ("- a\n", "f.yaml:1:1: expected a mapping"),
    ("", "f.yaml:1:1: expected a mapping"),
    ("just text\n", "f.yaml:1:1: expected a mapping"),
    ("a: [1, 2\nb: 3\n", "f.yaml:2:2: not YAML: "),
    ("a: 'x\n", "f.yaml:2:1: not YAML: "),
    ("1: a\n", "f.yaml:1:1: a key must be text, put it in quotes: '1'"),
    ("? [a]\n: b\n", "f.yaml:1:3: a key must be text"),
    ("a: &x {b: 1}\nc: {<<: *x}\n", "f.yaml:2:5: c: merge keys are not YAML 1.2; use `extends`"),
    ("a: \x01\n", "f.yaml:1:4: character"),
    ("a: " + "9" * 5000, "f.yaml:1:4: a: number with more than 400 digits"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refuses_with_the_position(text, message):
    with pytest.raises(ScenarioError) as error:
        read_text(text, "f.yaml")

    assert message in str(error.value)


def test_a_few_aliases_are_fine():
    assert read_text("a: &a {x: 1}\nb: *a\nc: *a\n", "f.yaml").plain()["c"] == {"x": 1}


def test_a_chain_of_aliases_does_not_exhaust_the_stack():
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))

    with pytest.raises(ScenarioError, match="aliases expand"):
        read_text(text, "f.yaml")


def test_all_findings_of_a_file_are_told_at_once():
    with pytest.raises(ScenarioError) as error:
        read_text("a: !x 1\nb: 1\nb: 2\n", "f.yaml")

    assert len(error.value.problems) == 2


def test_refuses_files_that_are_not_text(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: 1\nb: \xff\xfe\n")

    with pytest.raises(ScenarioError, match=r"f\.yaml:2:4: not UTF-8"):
        read_file(path)


def test_refuses_long_and_missing_files(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("a: " + "x" * MAX_BYTES)

    with pytest.raises(ScenarioError, match="longer than"):
        read_file(path)
    with pytest.raises(ScenarioError, match="cannot read the scenario"):
        read_file(tmp_path / "none.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes("\ufeffa: 1\n".encode())

    assert read_file(path).plain() == {"a": 1}
