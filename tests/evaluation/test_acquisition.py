from __future__ import annotations

import numpy as np
import pytest

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.acquisition import CANDIDATES, candidates, doubt, spread
from llmcls.evaluation.thresholds import Thresholds, fixed_thresholds

CLASSES = LabelSpace(["a", "b", "c"], ["kind"], "single_label_classification", ["a", "b", "c"])
BINARY = LabelSpace(["not_spam", "spam"], ["spam"], "binary_classification")
TOPICS = LabelSpace(["a", "b", "c"], ["a", "b", "c"], "multi_label_classification")


def entropy(p: float) -> float:
    """In bits."""
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def test_of_classes_the_two_most_probable_ones_tell_how_unsure_a_text_is() -> None:
    found = doubt(np.array([[0.5, 0.1, 0.4], [0.0, 1.0, 0.0], [0.2, 0.4, 0.4]]), fixed_thresholds(3), CLASSES)
    assert found.amount == pytest.approx([0.9, 0.0, 1.0])
    assert found.label[0] == 2


def test_the_threshold_of_a_binary_run_is_where_it_is_unsure() -> None:
    found = doubt(np.array([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1]]), Thresholds("global", [0.2, 0.2]), BINARY)
    # Odds of 4 and of 4 / 9 against those of the threshold.
    assert found.amount == pytest.approx([1.0, entropy(4 / 5), entropy(4 / 13)])
    assert found.label.tolist() == [0, 0, 1]


def test_the_doubt_of_labels_adds_up_and_is_largest_at_their_thresholds() -> None:
    thresholds = Thresholds("per_class", [0.5, 0.1, 1.5])
    found = doubt(np.array([[0.5, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 1.0, 0.3]]), thresholds, TOPICS)
    assert found.amount == pytest.approx([1.0, 1.0 + entropy(0.9), 0.0], abs=1e-5)
    assert found.label[:2].tolist() == [0, 1]


def crowded(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The states of a crowd of 60 most unsure texts, and of four groups of 10 that are a little less so."""
    generator = np.random.default_rng(seed)
    centres = np.eye(5) * 10
    states = np.concatenate(
        [
            centre + generator.normal(0, 0.3, (rows, 5))
            for centre, rows in zip(centres, (60, 10, 10, 10, 10), strict=True)
        ]
    )
    return states.astype(np.float32), np.repeat([1.0, 0.8], [60, 40]).astype(np.float32)


def test_one_text_of_each_group_is_chosen_where_the_most_unsure_ones_are_all_alike() -> None:
    states, amount = crowded()
    choice = spread(states, amount, 5, seed=0)
    assert sorted(np.where(choice.rows < 60, 0, 1 + (choice.rows - 60) // 10)) == [0, 1, 2, 3, 4]
    # The crowd comes first, because most texts are like it.
    assert choice.rows[0] < 60
    assert choice.stands_for.tolist() == [60, 10, 10, 10, 10]
    assert set(np.argsort(-amount, kind="stable")[:5]) <= set(range(60))


def test_the_same_seed_chooses_the_same_rows_each_once() -> None:
    states, amount = crowded()
    first, again = (spread(states, amount, 30, seed=3) for _ in range(2))
    assert first.rows.tolist() == again.rows.tolist()
    assert len(set(first.rows.tolist())) == 30


def test_equal_texts_and_small_pools_give_as_many_rows_as_they_have() -> None:
    amount = np.linspace(0.1, 1.0, 8, dtype=np.float32)
    same = np.ones((8, 4), dtype=np.float32)
    choice = spread(same, amount, 3, seed=0)
    assert len(set(choice.rows.tolist())) == 3
    assert spread(same, amount, 20, seed=0).rows.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_only_the_most_unsure_rows_of_a_large_pool_are_candidates() -> None:
    amount = np.random.default_rng(0).random(1000).astype(np.float32)
    found = candidates(amount, 3)
    assert len(found) == 3 * CANDIDATES
    assert amount[found].min() >= np.sort(amount)[-3 * CANDIDATES]
    assert candidates(amount, 500).tolist() == list(range(1000))
