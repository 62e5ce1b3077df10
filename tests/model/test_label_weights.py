from __future__ import annotations

import numpy as np
import pytest
import torch

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.model.label_weights import (
    balanced_class_weight,
    balanced_pos_weight,
    check_label_weights,
    label_weights,
    mean_weight,
)
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import TrainSection

TOPICS = LabelSpace(["books", "toys", "pets"], ["books", "toys", "pets"], "multi_label_classification")
CLASSES = LabelSpace(["a", "b", "c"], ["kind"], "single_label_classification", ["a", "b", "c"])


def test_balanced_weights_are_torchs_ratio_and_scikit_learns_and_are_capped() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    positives = np.array([50, 10, 1])
    assert balanced_pos_weight(positives, 100, cap=10.0).tolist() == pytest.approx([1.0, 9.0, 10.0])
    values = np.array([0] * 60 + [1] * 30 + [2] * 10)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=values)
    assert balanced_class_weight(np.bincount(values), 100, 10.0) == pytest.approx(expected)
    balanced = TrainSection(pos_weight="balanced")
    assert label_weights(balanced, TOPICS, positives, 100).tolist() == pytest.approx([1.0, 9.0, 10.0])
    assert label_weights(balanced, CLASSES, np.bincount(values), 100).tolist() == pytest.approx(expected)


def test_weights_by_hand_are_those_and_1_for_labels_that_are_not_named() -> None:
    # The cap is for balanced weights.
    train, counts = TrainSection(pos_weight={"toys": 25.0, "pets": 0.5}), np.array([9, 9, 9])
    assert label_weights(train, TOPICS, counts, 27).tolist() == [1.0, 25.0, 0.5]
    assert label_weights(TrainSection(), TOPICS, counts, 27) is None


def test_the_mean_weight_counts_each_row() -> None:
    assert mean_weight(np.array([2, 0, 0, 1]), torch.tensor([1.0, 2.0, 4.0])) == 2.0


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"boks": 2}, "train.pos_weight names 'boks', which is not a label; did you mean 'books'?"),
        ({"zzz": 2}, "names 'zzz', which is not a label; the labels are books, toys, pets"),
        ({"toys": 0}, "gives 'toys' the weight 0; it must be above 0"),
        ({"toys": -1.5}, "gives 'toys' the weight -1.5; it must be above 0"),
        ({"toys": "much"}, "train.pos_weight.toys is 'much'; it must be a number"),
        ({}, "train.pos_weight is empty; give labels their weights"),
        ("balancd", "train.pos_weight is 'balancd'; it must be one of balanced; did you mean balanced?"),
        ([1, 2], "it must be `name: number` lines"),
    ],
)
def test_weights_that_make_no_sense_are_refused(write_recipe, weights, sentence: str) -> None:
    path = write_recipe(train__pos_weight=weights)
    with pytest.raises(UserError) as refused:
        check_label_weights(load_recipe(path), TOPICS)
    assert sentence in str(refused.value)
    assert len(str(refused.value).partition("recipe.yaml")[2]) < 250
