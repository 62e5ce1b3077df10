from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, fbeta_score, hamming_loss

from llmcls.evaluation.objective import Average, Objective, average_of, measure, objective_of
from llmcls.recipe.metric_names import METRIC_NAMES, metric_names
from tests.evaluation.helpers import random_case


@pytest.mark.parametrize("average", ["micro", "macro", "weighted", "samples"])
def test_the_measure_is_that_of_scikit_learn(average: Average) -> None:
    for seed in range(5):
        scores, true = random_case(seed, rows=60, labels=4)
        for beta in (0.5, 1.0, 2.0):
            expected = fbeta_score(true, scores >= 0.5, beta=beta, average=average, zero_division=0)
            assert measure(true, scores >= 0.5, Objective(average, beta)) == pytest.approx(expected)


def test_shares_of_right_rows_and_cells() -> None:
    scores, true = random_case(0, rows=60, labels=4)
    assert measure(true, scores >= 0.5, Objective("exact")) == pytest.approx(accuracy_score(true, scores >= 0.5))
    assert measure(true, scores >= 0.5, Objective("cells")) == pytest.approx(1 - hamming_loss(true, scores >= 0.5))


def test_the_positive_class_is_the_second() -> None:
    true, predicted = np.array([[0, 1], [1, 0], [1, 0]], dtype=bool), np.array([[0, 1], [0, 1], [1, 0]], dtype=bool)
    assert measure(true, predicted, Objective("positive")) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "metric, multi, binary",
    [
        ("f1_micro", "micro", "exact"), ("f1_macro", "macro", "macro"), ("f1_weighted", "weighted", "weighted"),
        ("f1_samples", "samples", "exact"), ("accuracy", "exact", "exact"), ("hamming_loss", "cells", "exact"),
        ("average_precision_micro", "micro", "exact"), ("average_precision_macro", "macro", "macro"),
        ("loss", "macro", "positive"), ("calibration_error", "macro", "positive"),
    ],
)  # fmt: skip
def test_each_metric_is_served_by_decisions_over_its_average(metric: str, multi: str, binary: str) -> None:
    assert (average_of(metric, False), average_of(metric, True)) == (multi, binary)


def test_every_metric_is_served_by_some_decisions() -> None:
    averages = {average_of(name, False) for name in METRIC_NAMES}
    assert averages == {"micro", "macro", "weighted", "samples", "exact", "cells"}
    in_binary = {average_of(name, True) for name in metric_names("binary_classification")}
    assert in_binary == {"exact", "macro", "weighted", "positive"}


def test_the_weight_of_precision_and_recall_comes_from_the_recipe() -> None:
    assert objective_of("micro", "f2") == Objective("micro", 2.0)
    assert objective_of("macro", "recall@precision=0.9") == Objective("macro", precision=0.9)
    assert objective_of("macro", "recall@precision=0.9").name == "recall@precision=0.9"
