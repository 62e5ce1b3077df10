from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llmcls.common.strict_yaml import MOST_VALUES, YamlProblem, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize(
    "text, value",
    [
        ("3", 3), ("-1", -1), ("1_000", 1000), ("0x1F", 31), ("0", 0), ("0.5", 0.5), ("1.", 1.0), (".5", 0.5),
        ("1.0e-4", 1e-4), ("1e-4", "1e-4"), ("true", True), ("yes", True), ("null", None), ("~", None), ("", None),
        ("text", "text"), ("[a, 1]", ["a", 1]), ("{a: {b: c}}", {"a": {"b": "c"}}), ("!!str 7", "7"),
        ("010", "010"), ("1:30:20", "1:30:20"), ("1:30.5", "1:30.5"), ("2026-02-03", "2026-02-03"),
        ("2026-02-30", "2026-02-30"), ("'3'", "3"), ("&a [1, 2]", [1, 2]), ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ("{a: &x {k: 1}, b: {<<: *x, l: 2}}", {"a": {"k": 1}, "b": {"k": 1, "l": 2}}),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_is_what_was_written(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)


def test_a_number_remembers_how_it_was_written() -> None:
    assert [n.written for n in parse_yaml("[1.10, 1_000, +5, 0x10]")] == ["1.10", "1_000", "+5", "0x10"]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' occurs twice"),
        ('!!int "abc"', "'abc' is not a number"), ('!!float ""', "'' is not a number"),
        ("9" * 5000, "a number with more than 40 digits"), ("0x" + "f" * 6000, "a number with more than 40 digits"),
        ("[" * 1500 + "]" * 1500, "nested more than 30 deep"), ("- " * 1500, "nested more than 30 deep"),
        ("{a: " * 400, "nested more than 30 deep"),
        (BOMB, f"more than {MOST_VALUES} values"), (MERGES, f"more than {MOST_VALUES} values"),
        ("[" + "1, " * 400_000, f"more than {MOST_VALUES} values"),
        ("&a [*a]", r"\*a stands inside &a"), ("*a", "undefined alias"),
        ("!!timestamp 2026-02-30", "is not a type that may stand here"), ("!!set {a}", "is not a type"),
        ("!!python/object/apply:os.system [ls]", "is not a type"), ("!own x", "is not a type"),
        ("!!binary x", "is not a type"),
        ("{[a]: 1}", "unhashable|key"), ("a: b: c", "not allowed"), ("\x00", "."), ("\ud800", "."),
    ],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_what_cannot_be_meant_is_a_problem(text: str, sentence: str) -> None:
    with pytest.raises(YamlProblem, match=sentence) as problem:
        parse_yaml(text)
    assert len(str(problem.value)) < 200


def test_a_problem_names_its_line() -> None:
    with pytest.raises(YamlProblem) as problem:
        parse_yaml("a: 1\nb: 2\na: 3")
    assert problem.value.line == 3


def test_the_loader_of_pyyaml_is_left_as_it_was() -> None:
    assert yaml.safe_load("[010, 1:30:20, 3]") == [8, 5420, 3]


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: Z\xc3\xbcrich\r\n")
    assert read_yaml(path) == {"name": "Zürich"}
    path.write_bytes(b"a: \xff")
    with pytest.raises(YamlProblem, match=r"not UTF-8 \(byte 3"):
        read_yaml(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no endless file")
def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(YamlProblem, match="more than 4 MiB"):
        read_yaml(Path("/dev/zero"))
