from __future__ import annotations

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.data.subset import chosen_rows, nested_order
from llmcls.recipe.schema import DataSection

NAMES = list("abcd")
SINGLE = LabelSpace(NAMES, ["class"], "single_label_classification", NAMES)
MULTI = LabelSpace(NAMES, NAMES, "multi_label_classification")
CLASSES = np.repeat([0, 1, 2, 3], [500, 300, 190, 10])


def test_every_beginning_has_the_shares_of_the_whole() -> None:
    order = nested_order(CLASSES, SINGLE, seed=0)
    assert sorted(order) == list(range(1000))
    assert CLASSES[order[:4]].tolist() == [0, 1, 2, 3], "one of each label, the most frequent first"
    for size in (50, 100, 400):
        counts = np.bincount(CLASSES[order[:size]], minlength=4)
        assert np.abs(counts - size * np.bincount(CLASSES) / 1000).max() <= 2


def test_seeds_draw_other_rows() -> None:
    first, again, other = (set(nested_order(CLASSES, SINGLE, seed)[:100]) for seed in (0, 0, 1))
    assert first == again
    assert len(first & other) < 40


def test_a_row_with_several_labels_counts_for_its_rarest() -> None:
    rng = np.random.default_rng(0)
    marks = (rng.random((1000, 4)) < (0.6, 0.3, 0.1, 0.02)).astype(np.float32)
    order = nested_order(marks, MULTI, seed=0)
    assert marks[order[:5]].any(axis=0).all(), "every label is there at once, and a row without any"
    assert (marks[order[:5]].sum(axis=1) == 0).any()
    share = marks[order[:200]].mean(axis=0)
    assert share == pytest.approx(marks.mean(axis=0), abs=0.03)


def test_the_recipe_says_how_many_rows_in_the_order_of_the_file() -> None:
    data = DataSection("d", "train.csv", ["class"])
    assert chosen_rows(CLASSES, SINGLE, data) is None
    data.train_rows, data.train_rows_seed = 40, 3
    small = chosen_rows(CLASSES, SINGLE, data)
    data.train_rows = 80
    large = chosen_rows(CLASSES, SINGLE, data)
    assert small is not None
    assert large is not None
    assert len(small) == 40
    assert (np.diff(small) > 0).all()
    assert set(small) < set(large)
    data.train_rows = 1001
    with pytest.raises(UserError, match=r"data.train_rows is 1001, but train.csv has 1000 rows"):
        chosen_rows(CLASSES, SINGLE, data)
