from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from llmcls.evaluation.diagrams import POINTS, confusion_matrix, precision_recall, reliability
from llmcls.evaluation.metrics import expected_calibration_error


def test_points_are_on_the_curve_of_scikit_learn_and_cover_it() -> None:
    rng = np.random.default_rng(0)
    true = rng.random(3000) < 0.3
    scores = np.round(rng.random(3000) * 0.6 + true * 0.3, 3)
    points = precision_recall(true, scores)
    assert len(points) <= POINTS + 1
    precision, recall, _ = precision_recall_curve(true, scores)
    known = {(round(r, 9), round(p, 9)) for r, p in zip(recall, precision, strict=True)}
    assert {(round(r, 9), round(p, 9)) for r, p in points[1:]} <= known
    assert points[0][0] == 0
    assert points[-1][0] == 1
    xs, ys = zip(*points, strict=True)
    assert float(np.trapezoid(ys, xs)) == pytest.approx(average_precision_score(true, scores), abs=0.01)


def test_a_label_without_positives_has_no_curve() -> None:
    assert precision_recall(np.zeros(3, dtype=bool), np.ones(3)) == []


@pytest.mark.parametrize("multi_label", [True, False])
def test_the_gaps_of_reliability_are_the_calibration_error(multi_label: bool) -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(4), 500)
    true = np.arange(4) == rng.integers(4, size=500)[:, None]
    bins = reliability(probabilities, true, multi_label)
    cells = 2000 if multi_label else 500
    assert sum(b.count for b in bins) == cells
    error = sum(b.count * abs(b.predicted - b.observed) for b in bins) / cells
    assert error == pytest.approx(expected_calibration_error(probabilities, true, multi_label))


def test_rows_of_a_confusion_matrix_are_true_classes() -> None:
    true, predicted = np.eye(3, dtype=bool)[[0, 0, 1, 2]], np.eye(3, dtype=bool)[[0, 1, 1, 0]]
    assert confusion_matrix(true, predicted).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
