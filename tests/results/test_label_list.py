from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from llmcls.data.labels import LabelSpace, multi_hot, read_labels
from llmcls.data.tables import read_table
from llmcls.results.label_list import SUGGESTIONS, Suggestions, suggested_cell, write_label_list

NAMES = ["card, lost", "fee", "pin"]


def suggestions(decided: np.ndarray) -> Suggestions:
    rows = len(decided)
    probabilities = np.where(decided, 0.625, 0.125)
    about = np.ones(rows, dtype=np.int64)
    return Suggestions(probabilities, decided, about, np.full(rows, 0.75), np.arange(3, 3 + rows))


def test_the_list_has_the_columns_of_the_pool_empty_label_cells_and_what_the_run_says(tmp_path: Path) -> None:
    labels = LabelSpace(NAMES, ["intent"], "single_label_classification", NAMES)
    # The pool is an earlier list, of which no label was filled in.
    pool = {"id": ["007", "b"], "text": ['Where is "my" card?\nI lost it', "Gebühr"], "intent": ["", ""]}
    table = datasets.Dataset.from_dict(pool | {name: ["old", "old"] for name in SUGGESTIONS})
    path = tmp_path / "list.csv"
    write_label_list(path, table, suggestions(np.eye(3, dtype=bool)[[0, 2]]), labels)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert [dict(row) for row in read_table(path)] == [
        {
            "id": "007", "text": pool["text"][0], "intent": "", "suggested": "card, lost",
            "suggested_probability": "0.625", "unsure_about": "fee", "uncertainty": "0.750", "stands_for": "3",
        },
        {
            "id": "b", "text": "Gebühr", "intent": "", "suggested": "pin",
            "suggested_probability": "0.625", "unsure_about": "fee", "uncertainty": "0.750", "stands_for": "4",
        },
    ]  # fmt: skip


def test_columns_of_0_and_1_are_empty_and_the_suggestion_names_the_labels(tmp_path: Path) -> None:
    labels = LabelSpace(["fee", "pin"], ["fee", "pin"], "multi_label_classification")
    table = datasets.Dataset.from_dict({"text": ["a", "b"]})
    write_label_list(tmp_path / "list.csv", table, suggestions(np.array([[True, True], [False, False]])), labels, ";")
    first, second = read_table(tmp_path / "list.csv")
    assert (first["fee"], first["pin"], first["suggested"]) == ("", "", "fee|pin")
    assert first["suggested_probability"] == "0.625|0.625"
    assert (second["suggested"], second["suggested_probability"]) == ("", "")


def test_the_suggestion_for_classes_with_a_column_each_is_the_name_of_one() -> None:
    labels = LabelSpace(["no", "yes"], ["no", "yes"], "binary_classification")
    assert suggested_cell(np.array([1]), labels) == "yes"


@pytest.mark.parametrize(
    "labels",
    [
        LabelSpace(NAMES, ["intent"], "single_label_classification", NAMES),
        LabelSpace(NAMES, ["intent"], "single_label_classification", NAMES, lists=True),
        LabelSpace(NAMES, ["intent"], "multi_label_classification", separator=";"),
        LabelSpace(NAMES, ["intent"], "multi_label_classification", lists=True),
        LabelSpace(["fee"], ["fee"], "multi_label_classification"),
        LabelSpace(["not_fee", "fee"], ["fee"], "binary_classification"),
        LabelSpace(["no", "yes"], ["fee"], "binary_classification", ["no", "yes"]),
    ],
    ids=["classes", "list of one", "separator", "lists", "one column", "binary", "two words"],
)
def test_a_suggestion_that_is_copied_into_the_label_cell_is_read_as_it_was_meant(labels: LabelSpace) -> None:
    count = len(labels.names)
    rows = np.eye(count, dtype=bool)
    if labels.multi_label:
        rows = np.concatenate([rows, np.ones((1, count), dtype=bool), np.zeros((1, count), dtype=bool)])
    cells = [suggested_cell(np.flatnonzero(marks), labels) for marks in rows]
    read = read_labels({labels.columns[0]: cells}, list(range(len(cells))), labels, "list.csv")
    assert multi_hot(np.array(read), count).tolist() == rows.tolist()
