from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace, label_space
from llmcls.data.splits import Split, tokenize_split
from llmcls.data.tables import read_table
from llmcls.model.pretrained import load_tokenizer
from llmcls.recipe.load import load_recipe
from tests.conftest import write_csv


def delimited(write_recipe, folder: Path, cells: list[str], **changes) -> tuple[Split, LabelSpace]:
    path = folder / "train.csv"
    write_csv(path, [{"uid": str(i), "text": f"text {i}", "tags": cell} for i, cell in enumerate(cells)])
    recipe = load_recipe(
        write_recipe(
            data__train_csv=str(path),
            data__val_csv=None,
            data__test_csv=None,
            data__text_fields=["text"],
            data__label_columns=["tags"],
            data__label_separator="|",
            **changes,
        )
    )
    table = read_table(path)
    labels = label_space(recipe, table)
    return tokenize_split(table, "train", str(path), recipe, load_tokenizer(recipe.model), labels), labels


def test_one_column_may_hold_all_labels(write_recipe, tmp_path: Path) -> None:
    split, labels = delimited(write_recipe, tmp_path, ["b|a", " a ", "", "c||b"])
    assert labels.names == ["a", "b", "c"]
    assert split.labels.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]]


def test_paths_imply_their_ancestors(write_recipe, tmp_path: Path) -> None:
    split, labels = delimited(write_recipe, tmp_path, ["a/b/c", "a", "d/e|a/b"], data__hierarchy_separator="/")
    assert labels.names == ["a", "a/b", "a/b/c", "d", "d/e"]
    assert split.labels.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 1, 1]]


def test_indicator_columns_may_be_paths_too(write_recipe, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    write_csv(path, [{"text": "x", "a": "0", "a/b": "1", "c": "0"}, {"text": "y", "a": "1", "a/b": "0", "c": "1"}])
    recipe = load_recipe(
        write_recipe(
            data__train_csv=str(path),
            data__id_column=None,
            data__text_fields=["text"],
            data__label_columns=["a", "a/b", "c"],
            data__hierarchy_separator="/",
        )
    )
    table = read_table(path)
    split = tokenize_split(table, "train", str(path), recipe, load_tokenizer(recipe.model), label_space(recipe, table))
    assert split.labels.tolist() == [[1, 1, 0], [1, 0, 1]]


def test_a_label_unknown_to_training_is_named_with_its_row(write_recipe, tmp_path: Path) -> None:
    _, labels = delimited(write_recipe, tmp_path, ["a", "b"])
    path = tmp_path / "test.csv"
    write_csv(path, [{"uid": "1", "text": "x", "tags": "a"}, {"uid": "2", "text": "y", "tags": "a|zebra"}])
    recipe = load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"test\.csv, row 2, column 'tags': the label 'zebra' is not in the training"):
        tokenize_split(read_table(path), "test", str(path), recipe, load_tokenizer(recipe.model), labels)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data__label_columns": ["a", "b"]}, "data.label_columns names 2 columns; with data.label_separator"),
        ({"model__problem_type": "single_label_classification"}, "data.label_separator is for multi_label"),
    ],
)
def test_what_does_not_go_together_is_refused(write_recipe, changes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_recipe(write_recipe(**{"data__label_separator": "|", "data__label_columns": ["tags"], **changes}))


def test_no_label_anywhere_is_a_mistake(write_recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row has a label"):
        delimited(write_recipe, tmp_path, ["", " | "])


def test_ancestors_are_numbers_of_labels() -> None:
    labels = LabelSpace(["a", "a>b", "x"], ["t"], "multi_label_classification", hierarchy=">")
    assert labels.ancestors() == [[], [0], []]
    assert np.array_equal(LabelSpace(["a"], ["a"], "multi_label_classification").ancestors(), [[]])
