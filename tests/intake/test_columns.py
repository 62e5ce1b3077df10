from __future__ import annotations

from typing import Any

import datasets
import pytest

from llmcls.intake.columns import id_column, label_columns, label_form, look_at, text_columns

TEXTS = [f"this is message number {i} of many" for i in range(40)]


def table(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": TEXTS} | {name: (cells * 40)[:40] for name, cells in columns.items()})


@pytest.mark.parametrize(
    "columns, candidates",
    [
        ({"a": ["0", "1"], "b": ["1", "1", "0"]}, [["a", "b"]]),
        ({"colour": ["red", "green"], "sentiment": ["good", "bad"]}, [["sentiment"]]),
        ({"colour": ["red", "green"], "verified": ["True", "False"]}, [["colour"], ["verified"]]),
        ({"label": ["joy", "fear"], "verified": ["True", "False"]}, [["label"]]),
        ({"emotions": ["['joy']", "['joy', 'fear']"], "colour": ["red", "green"]}, [["emotions"]]),
        ({"stars": ["1", "2", "3", "4", "5"]}, [["stars"]]),
        ({"price": [str(i * 1.7) for i in range(40)]}, []),
    ],
)
def test_label_columns_are_those_with_few_values_and_names_decide(columns, candidates: list[list[str]]) -> None:
    looked = look_at(table(**columns))
    assert label_columns(looked) == candidates
    assert text_columns(looked) == ["text"]


def test_short_texts_are_told_by_their_name_and_titles_go_with_them() -> None:
    data = table(title=[f"No {i}" for i in range(40)], place=[f"Rome {i}" for i in range(40)])
    assert text_columns(look_at(data)) == ["text", "title"]


def test_ids_are_different_in_all_rows_and_called_so() -> None:
    data = table(user_id=["1", "2"], number=[str(i) for i in range(40)], code=[f"c{i}" for i in range(40)])
    assert id_column(data, look_at(data), ["text"]) == "number"
    assert id_column(data, look_at(data), ["text", "number"]) is None


@pytest.mark.parametrize(
    "cells, problem_type, separator, names",
    [
        (["['a']", "['b', 'a']"], "multi_label_classification", None, ["a", "b"]),
        (["['a']", "['b']"], "single_label_classification", None, ["a", "b"]),
        (["a;b", "b", "a", ""], "multi_label_classification", ";", ["a", "b"]),
        (["a, x", "b, y", "c, z"], "single_label_classification", None, ["a, x", "b, y", "c, z"]),
        (["1", "0"], "binary_classification", None, ["not_k", "k"]),
        (["ham", "spam"], "binary_classification", None, ["ham", "spam"]),
    ],
)
def test_the_task_follows_from_the_cells(cells: list[str], problem_type: str, separator, names: list[str]) -> None:
    form = label_form(table(k=cells), ["k"])
    assert (form.problem_type, form.separator, form.names) == (problem_type, separator, names)
