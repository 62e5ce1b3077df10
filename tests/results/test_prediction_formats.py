from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llmcls.data import marks
from llmcls.data.labels import LabelSpace
from llmcls.results.prediction_formats import format_of, write_lines

MULTI = LabelSpace(["a", "b, c"], ["a", "b, c"], "multi_label_classification")
ROWS: list[dict[str, Any]] = [
    {"id": "007", "probabilities": {"a": 0.75, "b, c": 0.123456789}, "labels": ["a", "b, c"], "true": ["a"]},
    {"id": 'x "y"', "probabilities": {"a": 0.25, "b, c": 0.5}, "labels": [], "true": ["b, c"]},
]


def lines(rows: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(row) + "\n" for row in rows]


def test_a_csv_has_a_column_for_each_probability(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    write_lines(lines(ROWS), path, MULTI, "csv")
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.reader(file))
    assert found == [
        ["id", "labels", "true", "probability_a", "probability_b, c"],
        ["007", "a|b, c", "a", "0.75", "0.123456789"],
        ['x "y"', "", "b, c", "0.25", "0.5"],
    ]


def test_parquet_has_lists_of_labels_and_any_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_lines(lines(ROWS * 5000), path, MULTI, "parquet")
    table = pq.read_table(path)
    assert table.num_rows == 10_000
    assert table.slice(9_998).to_pylist() == [
        {"id": r["id"], "labels": r["labels"], "true": r["true"]}
        | {f"probability_{name}": p for name, p in r["probabilities"].items()}
        for r in ROWS
    ]


@pytest.mark.parametrize(
    "names, kind, labels, cell",
    [
        (["a|b", "c"], "multi_label_classification", ["a|b", "c"], "a|b;c"),
        (["a|b;c/d\te", "f"], "multi_label_classification", ["f"], '["f"]'),
        (["a", "b"], "single_label_classification", ["b"], "b"),
    ],
)
def test_labels_of_a_cell_can_be_told_apart(tmp_path: Path, names, kind: str, labels: list[str], cell: str) -> None:
    row = {"id": "1", "probabilities": dict.fromkeys(names, 0.5), "labels": labels}
    write_lines(lines([row]), tmp_path / "p.csv", LabelSpace(names, names, kind), "csv")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1][1] == cell


def test_the_extension_decides_unless_a_format_is_given(tmp_path: Path) -> None:
    assert [format_of(name) for name in ("p.CSV", "p.parquet", "p.jsonl", "p.txt", "p")] == [
        "csv", "parquet", "jsonl", "jsonl", "jsonl",
    ]  # fmt: skip
    assert format_of("p.csv", "parquet") == "parquet"
    write_lines(lines(ROWS), tmp_path / "p.jsonl", MULTI, "jsonl")
    assert (tmp_path / "p.jsonl").read_text(encoding="utf-8") == "".join(lines(ROWS))


def test_many_labels_share_one_column_of_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "MANY_LABELS", 1)
    rows = [{"id": "1", "probabilities": {"b, c": 0.75}, "labels": ["b, c"]}]
    for kind in ("csv", "parquet"):
        write_lines(lines(rows), tmp_path / f"p.{kind}", MULTI, kind)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["id", "labels", "probabilities"], ["1", "b, c", '{"b, c": 0.75}']]
    assert pq.read_table(tmp_path / "p.parquet").to_pylist()[0]["probabilities"] == [("b, c", 0.75)]
