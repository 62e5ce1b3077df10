from __future__ import annotations

import numpy as np

from llmcls.data.marks import from_lists
from llmcls.evaluation.top_baselines import frequent_labels, nearest_centroids

TEXTS = {"train": ["red ball", "red car", "blue car", "blue sky blue"], "test": ["a red thing", "blue"]}
TRAIN = from_lists([[0, 2], [0], [1], [1, 2]], 6)


def test_centroids_find_the_label_whose_texts_share_words() -> None:
    found = nearest_centroids(TEXTS, TRAIN, kept=6)
    assert list(found) == ["test"]
    assert found["test"].best[:, 0].tolist() == [0, 1]
    assert found["test"].probabilities.max() <= 1.0 + 1e-6


def test_frequent_labels_are_the_same_for_every_text() -> None:
    found = frequent_labels(TEXTS, TRAIN, kept=5)["test"]
    assert found.best.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert np.allclose(found.probabilities.toarray()[0], [0.5, 0.5, 0.5, 0, 0, 0])


def test_texts_without_words_fall_back_to_frequent_labels() -> None:
    found = nearest_centroids({"train": ["", " "], "test": ["x"]}, TRAIN[:2], kept=5)["test"]
    assert found.best[0, 0] == 0
