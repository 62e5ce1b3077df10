from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import (
    LabelSpace,
    add_ancestors,
    count_positives,
    label_space,
    multi_hot,
    multi_hot_of_lists,
    read_labels,
)
from llmcls.data.tables import read_table
from llmcls.recipe.load import load_recipe
from tests.helpers import read_rows, refusal, write_csv

MULTI = "multi_label_classification"
PATHS = LabelSpace(["a", "a>b", "x"], ["t"], MULTI, hierarchy=">")


def labelled(recipe_path: Path, path: Path) -> tuple[list[Any], LabelSpace]:
    """The label values of a training table, and its labels."""
    recipe = load_recipe(recipe_path, [f"data.train_csv={path}"])
    table = read_table(path)
    labels = label_space(recipe, table)
    return read_labels(table[:], list(range(len(table))), labels, str(path)), labels


def delimited(write_recipe, folder: Path, cells: list[str], **changes) -> tuple[list[Any], LabelSpace]:
    path = write_csv(folder / "train.csv", [{"uid": str(i), "tags": cell} for i, cell in enumerate(cells)])
    changes = {"data__label_columns": ["tags"], "data__label_separator": "|"} | changes
    return labelled(write_recipe(**changes), path)


def classes(write_recipe, folder: Path, cells: list[str], kind: str) -> tuple[list[Any], LabelSpace]:
    path = write_csv(folder / "train.csv", [{"uid": str(i), "kind": cell} for i, cell in enumerate(cells)])
    return labelled(write_recipe(data__label_columns=["kind"], model__problem_type=kind), path)


def test_one_column_may_contain_all_labels(write_recipe, tmp_path: Path) -> None:
    values, labels = delimited(write_recipe, tmp_path, ["b|a", " a ", "", "c||b"])
    assert labels.names == ["a", "b", "c"]
    assert values == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]]


def test_paths_imply_their_ancestors(write_recipe, tmp_path: Path) -> None:
    values, labels = delimited(write_recipe, tmp_path, ["a/b/c", "a", "d/e|a/b"], data__hierarchy_separator="/")
    assert labels.names == ["a", "a/b", "a/b/c", "d", "d/e"]
    assert values == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 1, 1]]


def test_indicator_columns_may_be_paths_too(write_recipe, tmp_path: Path) -> None:
    rows = [{"text": "x", "a": "0", "a/b": "1", "c": "0"}, {"text": "y", "a": "1", "a/b": "0", "c": "1"}]
    path = write_csv(tmp_path / "train.csv", rows)
    recipe = write_recipe(data__label_columns=["a", "a/b", "c"], data__hierarchy_separator="/")
    assert labelled(recipe, path)[0] == [[1, 1, 0], [1, 0, 1]]


def test_a_label_unknown_to_training_is_named_with_its_row(write_recipe, tmp_path: Path) -> None:
    _, labels = delimited(write_recipe, tmp_path, ["a", "b"])
    table = read_table(write_csv(tmp_path / "test.csv", [{"tags": "a"}, {"tags": "a|zebra"}]))
    with pytest.raises(UserError, match=r"test\.csv, row 2, column 'tags': the label 'zebra' is not in the training"):
        read_labels(table[:], [0, 1], labels, "test.csv")


def test_a_file_without_any_label_is_an_error(write_recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row has a label"):
        delimited(write_recipe, tmp_path, ["", " | "])


def test_classes_are_read_from_the_training_file(write_recipe, tmp_path: Path) -> None:
    kind = "single_label_classification"
    values, labels = classes(write_recipe, tmp_path, ["pear", "apple", "fig", "apple"], kind)
    assert labels.names == ["apple", "fig", "pear"]
    assert values == [2, 0, 1, 0]


@pytest.mark.parametrize(
    "cells, names, expected",
    [
        (["1", "0", "1"], ["not_kind", "kind"], [1, 0, 1]),
        (["True", "false"], ["not_kind", "kind"], [1, 0]),
        (["spam", "ham", "spam"], ["ham", "spam"], [1, 0, 1]),
    ],
)
def test_binary_labels_are_numbers_or_two_names(write_recipe, tmp_path: Path, cells, names, expected) -> None:
    values, labels = classes(write_recipe, tmp_path, cells, "binary_classification")
    assert labels.names == names
    assert values == expected


def test_a_class_unknown_to_the_training_file_is_named(write_recipe, tmp_path: Path) -> None:
    _, labels = classes(write_recipe, tmp_path, ["a", "b"], "single_label_classification")
    with pytest.raises(UserError, match=r"test\.csv, row 1, column 'kind': 'c' is not a class of the training file"):
        read_labels({"kind": ["c"]}, [0], labels, "test.csv")


@pytest.mark.parametrize(
    "cells, kind, sentence",
    [
        (["a", ""], "single_label_classification", r"train\.csv, row 2, column 'kind': the class is empty"),
        (["a", "a"], "single_label_classification", "every row has the class 'a'; at least two"),
        (["a", "b", "c"], "binary_classification", r"has 3 values .*model\.problem_type=single_label_classification"),
    ],
)
def test_classes_that_cannot_be_learned_are_refused(write_recipe, tmp_path: Path, cells, kind, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        classes(write_recipe, tmp_path, cells, kind)


@pytest.mark.parametrize("column, row, cell", [("music", 3, "2"), ("toys", 1, "")], ids=["2", "empty"])
def test_a_cell_that_is_not_0_or_1_is_named(write_recipe, products, tmp_path, capsys, column, row, cell) -> None:
    rows = read_rows(products / "train.csv")
    rows[row - 1][column] = cell
    path = write_csv(tmp_path / "train.csv", rows)
    found = refusal(capsys, "check", write_recipe(data__train_csv=str(path)))
    assert f"row {row}, column {column!r}: {cell!r} is not 0 or 1" in found
    assert str(path) in found


def test_ancestors_are_numbers_of_labels() -> None:
    assert PATHS.ancestors() == [[], [0], []]
    assert np.array_equal(LabelSpace(["a"], ["a"], MULTI).ancestors(), [[]])


def test_ancestors_of_marked_labels_are_marked_and_nothing_is_unmarked() -> None:
    marks = np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0]], dtype=np.float32)
    assert add_ancestors(marks, PATHS).tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert marks.tolist()[0] == [0, 1, 0], "the argument is not changed"


def test_positives_are_counted_for_marks_and_for_classes() -> None:
    marks = np.array([[1, 0], [1, 1], [1, 0]], dtype=np.float32)
    assert count_positives(marks, LabelSpace(["a", "b"], ["a", "b"], MULTI)).tolist() == [3, 1]
    single = LabelSpace(["a", "b", "c"], ["k"], "single_label_classification", ["a", "b", "c"])
    assert count_positives(np.array([2, 0, 2]), single).tolist() == [1, 0, 2]


def test_marks_come_from_classes_marks_and_lists() -> None:
    expected = [[False, False, True], [True, False, False]]
    assert multi_hot(np.array([2, 0]), 3).tolist() == expected
    assert multi_hot(np.array(expected, dtype=np.float32), 3).tolist() == expected
    assert multi_hot_of_lists([[2], [0]], 3).tolist() == expected
    assert multi_hot_of_lists([[], [1, 2]], 3).tolist() == [[False] * 3, [False, True, True]]


def test_spaces_around_a_class_do_not_make_another_class(write_recipe, tmp_path: Path) -> None:
    values, labels = classes(write_recipe, tmp_path, [" pear", "apple", "pear "], "single_label_classification")
    assert labels.names == ["apple", "pear"]
    assert values == [1, 0, 1]
