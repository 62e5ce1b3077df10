from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.holdout import held_out_rows, rows_of_split, stratified_part
from llmcls.data.labels import LabelSpace
from llmcls.data.marks import sparse_marks
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import DataSection
from tests.helpers import read_rows, refusal

CLASSES = LabelSpace(["a", "b", "c"], ["k"], "single_label_classification", ["a", "b", "c"])
NAMES = [f"label {i}" for i in range(12)]


def sample_marks(rows: int, seed: int) -> np.ndarray:
    """Overlapping labels of very different frequency."""
    rng = np.random.default_rng(seed)
    marks = (rng.random((rows, len(NAMES))) < np.geomspace(0.4, 0.005, len(NAMES))).astype(np.float32)
    # The rarest label occurs only with the most frequent one.
    marks[:, 0] = np.maximum(marks[:, 0], marks[:, -1])
    return marks


def test_every_class_has_its_share() -> None:
    values = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [700, 200, 100]))
    held = stratified_part(sparse_marks(values, 3), 0.1, seed=0)
    assert np.bincount(values[held]).tolist() == [70, 20, 10]


def test_every_label_of_overlapping_ones_has_its_share_better_than_by_chance() -> None:
    marks, worst = sample_marks(3000, seed=1), []
    expected = 0.1 * marks.sum(axis=0)
    for seed in range(5):
        held = stratified_part(sparse_marks(marks, len(NAMES)), 0.1, seed)
        assert abs(held.sum() - 300) <= 15
        assert (marks[~held].sum(axis=0) > 0).all()
        chance = np.random.default_rng(seed).random(len(marks)) < 0.1
        errors = [np.abs(marks[rows].sum(axis=0) - expected) for rows in (held, chance)]
        worst.append([error.mean() for error in errors])
        assert errors[0].max() <= 0.25 * expected.max()
    mine, by_chance = np.mean(worst, axis=0)
    assert mine < 0.5 * by_chance


def test_a_label_with_one_row_stays_in_training_and_rows_without_labels_are_shared_out() -> None:
    marks = np.zeros((100, 2), np.float32)
    marks[3, 0] = marks[10:30, 1] = 1
    held = stratified_part(sparse_marks(marks, 2), 0.5, seed=0)
    assert (held[3], held[10:30].sum(), held.sum()) == (False, 10, pytest.approx(50, abs=1))


def test_the_same_texts_stay_together_and_the_seed_decides() -> None:
    values = np.repeat([0, 1], 50)
    digests = np.arange(1, 101) // 2 + 1
    data = DataSection("name", "train.csv", ["k"], validation_split=0.2)
    held = held_out_rows(values, digests, CLASSES, data)
    assert held is not None
    assert not set(digests[held]) & set(np.delete(digests, held))
    assert np.array_equal(held_out_rows(values, digests, CLASSES, data), held)
    data.validation_split_seed = 1
    assert not np.array_equal(held_out_rows(values, digests, CLASSES, data), held)
    data.validation_split = None
    assert held_out_rows(values, digests, CLASSES, data) is None


def test_a_share_of_no_row_and_two_kinds_of_validation_are_refused(write_recipe, capsys) -> None:
    data = DataSection("name", "train.csv", ["k"], validation_split=0.001)
    with pytest.raises(UserError, match=r"is 0\.001, which is no row of the 4 of train\.csv; raise it"):
        held_out_rows(np.array([0, 1, 0, 1]), np.arange(4), CLASSES, data)
    assert "where data.val_csv names a file" in refusal(capsys, "check", write_recipe(data__validation_split=0.1))
    assert "must be above 0 and below 1" in refusal(capsys, "check", write_recipe(data__validation_split=1))


def test_the_rows_of_both_parts_are_those_of_the_file(write_recipe, products: Path) -> None:
    recipe = load_recipe(write_recipe(data__val_csv=None, data__validation_split=0.1))
    held, kept = (rows_of_split(recipe, split) for split in ("validation", "train"))
    assert held is not None
    assert kept is not None
    assert sorted([*held, *kept]) == list(range(len(read_rows(products / "train.csv"))))
    assert rows_of_split(recipe, "test") is None
