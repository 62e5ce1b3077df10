from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState

from llmcls.common.user_error import UserError
from llmcls.data.batches import collate
from llmcls.data.label_cells import soft_cell
from llmcls.data.labels import LabelSpace, label_space
from llmcls.data.soft_labels import harden, read_hard_labels, read_soft_labels
from llmcls.data.tables import read_table
from llmcls.evaluation.baselines import read_splits
from llmcls.recipe.checks import check_for_labels
from llmcls.recipe.load import load_recipe
from llmcls.training.inputs import load_inputs
from tests.helpers import TOPICS, read_rows, write_csv

MULTI, SINGLE, BINARY = "multi_label_classification", "single_label_classification", "binary_classification"


def read(labels: LabelSpace, **cells: list[str]) -> list[list[float]]:
    found = read_soft_labels(cells, list(range(len(next(iter(cells.values()))))), labels, "t.csv")
    assert found.dtype == np.float32
    return [[round(float(p), 4) for p in row] for row in found]


def test_columns_of_probabilities_are_read_beside_0_and_1() -> None:
    several = LabelSpace(["a", "b"], ["a", "b"], MULTI)
    assert read(several, a=["0.7", "1", "true"], b=["0.25", "0", "1e-1"]) == [[0.7, 0.25], [1, 0], [1, 0.1]]
    # Rounded probabilities of classes are made to sum to 1.
    one = LabelSpace(["a", "b", "c"], ["a", "b", "c"], SINGLE)
    assert read(one, a=["0.33", "1"], b=["0.33", "0"], c=["0.33", "0"]) == [[0.3333] * 3, [1, 0, 0]]
    assert read(LabelSpace(["not_a", "a"], ["a"], BINARY), a=["0.9", "0"]) == [[0.1, 0.9], [1, 0]]
    paths = LabelSpace(["a", "a/b"], ["a", "a/b"], MULTI, hierarchy="/")
    assert read_soft_labels({"a": ["0.2"], "a/b": ["0.6"]}, [0], paths, "t.csv").tolist() == [pytest.approx([0.6, 0.6])]


def test_probabilities_by_name_are_read_beside_labels() -> None:
    classes = LabelSpace(["a", "b", "c"], ["kind"], SINGLE, ["a", "b", "c"])
    assert read(classes, kind=['{"b": 0.75, "c": 0.25}', "a", "{'c': 1, 'a': None}"]) == [
        [0, 0.75, 0.25], [1, 0, 0], [0, 0, 1]
    ]  # fmt: skip
    assert read(LabelSpace(["a", "b"], ["tags"], MULTI, separator="|"), tags=['{"b": 0.75}', "a|b", "", "{}"]) == [
        [0, 0.75], [1, 1], [0, 0], [0, 0]
    ]  # fmt: skip


def test_a_column_of_probabilities_by_name_needs_no_separator(write_recipe, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{"tags": '{"b": 0.75, "a": 0.5}'}, {"tags": '{"c": 1}'}])
    recipe = write_recipe(data__label_columns=["tags"], data__train_csv=str(path), data__soft_labels=True)
    labels = label_space(load_recipe(recipe), read_table(path))
    assert labels.names == ["a", "b", "c"]
    assert read(labels, tags=['{"c": 0.25}', "['a', 'b']"]) == [[0, 0, 0.25], [1, 1, 0]]


BRACES = ["{[1]: 2}", '{"a": 1e999, "b": "x"}', "{'a': 1" + "0" * 400 + "}", "{", '{"a": true}']


@pytest.mark.parametrize("cell", BRACES, ids=range(len(BRACES)))
def test_cells_in_braces_that_are_no_probabilities_are_names(cell: str) -> None:
    assert soft_cell(cell) is None


def test_what_probabilities_stand_for_is_the_label_from_one_half_on_or_the_most_probable_class() -> None:
    soft = np.array([[0.5, 0.49], [0.2, 0.9]], np.float32)
    assert harden(soft, LabelSpace(["a", "b"], ["a", "b"], MULTI)).tolist() == [[1, 0], [0, 1]]
    assert harden(soft, LabelSpace(["a", "b"], ["k"], SINGLE, ["a", "b"])).tolist() == [0, 1]
    assert harden(np.array([[0.5, 0.5]]), LabelSpace(["not_a", "a"], ["a"], BINARY)).tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "cells", "sentence"),
    [
        (
            LabelSpace(["a", "b"], ["a", "b"], MULTI),
            {"a": ["0.5"], "b": ["1.7"]},
            "t.csv, row 1, column 'b': '1.7' is not a probability; write a number from 0 to 1",
        ),
        (
            LabelSpace(["a", "b"], ["a", "b"], SINGLE),
            {"a": ["0.5", "0.5"], "b": ["0.5", "0.3"]},
            "t.csv, row 2: the probabilities of the classes sum to 0.8; they must sum to 1, or set",
        ),
        (
            LabelSpace(["card", "loan"], ["kind"], SINGLE, ["card", "loan"]),
            {"kind": ['{"crd": 1}']},
            "row 1, column 'kind': 'crd' is not a known label; did you mean 'card'?",
        ),
        (
            LabelSpace(["card", "loan"], ["kind"], SINGLE, ["card", "loan"]),
            {"kind": ['{"card": 1.5, "loan": -0.5}']},
            "the probability of 'card' is 1.5; write a number from 0 to 1",
        ),
    ],
)
def test_cells_that_are_no_probabilities_are_refused(labels: LabelSpace, cells, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        read(labels, **cells)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "column", "sentence"),
    [
        (SINGLE, ["a", '{"a": 0.6, "b": 0.4}'], 'such as \'{"a": 0.6, "b": 0.4}\' are probabilities; set data.soft_'),
        (BINARY, ["0", "0.4", "0.9"], "cells such as '0.4' are probabilities; set data.soft_labels=true"),
        (MULTI, ["1", "0.4", "0.9"], "cells such as '0.4' are probabilities; set data.soft_labels=true"),
    ],
)
def test_without_the_key_probabilities_are_refused_with_it(
    write_recipe, tmp_path: Path, kind: str, column: list[str], sentence: str
) -> None:
    path = write_csv(tmp_path / "t.csv", [{"kind": cell} for cell in column])
    recipe = write_recipe(model__problem_type=kind, data__label_columns=["kind"], data__train_csv=str(path))
    with pytest.raises(UserError) as refused:
        label_space(load_recipe(recipe), read_table(path))
    assert sentence in str(refused.value)
    soft = load_recipe(recipe, ["soft_labels=true"])
    names = {SINGLE: ["a", "b"], BINARY: ["not_kind", "kind"], MULTI: ["kind"]}[kind]
    assert label_space(soft, read_table(path)).names == names


def test_a_probability_in_a_0_1_column_names_the_key(write_recipe) -> None:
    labels = LabelSpace(["a", "b"], ["a", "b"], MULTI)
    data = load_recipe(write_recipe()).data
    with pytest.raises(UserError, match=r"row 1, column 'b': '0\.7' is not 0 or 1; set data\.soft_labels=true"):
        read_hard_labels({"a": ["1"], "b": ["0.7"]}, [0], labels, "t.csv", data)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train__loss": "asymmetric"}, "is asymmetric, which is not defined for probabilities"),
        ({"train__loss": "focal", "model__problem_type": SINGLE}, "is focal, which is not defined for probabilities"),
        ({"model__problem_type": SINGLE, "data__soft_labels": False}, "each class needs data.soft_labels=true"),
        ({"model__problem_type": BINARY}, "binary_classification needs exactly one"),
    ],
)
def test_what_makes_no_sense_with_probabilities_is_refused(write_recipe, changes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_recipe(write_recipe(**{"data__soft_labels": True} | changes))
    load_recipe(write_recipe(**{"data__soft_labels": True, "train__loss": "focal", "model__problem_type": MULTI}))


def test_probabilities_of_thousands_of_labels_are_refused(write_recipe) -> None:
    recipe = load_recipe(write_recipe(data__soft_labels=True))
    check_for_labels(recipe, 10, many=False)
    with pytest.raises(UserError, match=r"data\.soft_labels is true, but a probability for each of 13,330 labels"):
        check_for_labels(recipe, 13_330, many=True)


def test_only_training_sees_probabilities(write_recipe, products: Path, tmp_path: Path) -> None:
    rows = read_rows(products / "train.csv")
    for row in rows:
        row.update({topic: "0.75" if row[topic] == "1" else "0.125" for topic in TOPICS})
    changes = {"data__train_csv": str(write_csv(tmp_path / "soft.csv", rows)), "data__soft_labels": True}
    recipe = load_recipe(write_recipe(**changes, data__val_csv=None, data__validation_split=0.25, data__train_rows=64))
    inputs = load_inputs(recipe, PartialState(cpu=True))
    for split in (inputs.train_split, inputs.validation_split):
        assert split is not None
        assert np.array_equal(split.soft, np.where(split.known_labels == 1, 0.75, 0.125))
    batch = collate(inputs.train_split, np.array([3, 0]), 0)
    assert np.array_equal(batch.labels, inputs.train_split.soft[[3, 0]])
    _, values = read_splits(recipe, inputs.labels)
    assert np.array_equal(values["train"], inputs.train_split.known_labels)
    assert np.array_equal(values["validation"], inputs.validation_split.known_labels)
