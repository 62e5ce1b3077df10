from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from llmcls.evaluation.metrics import (
    confusions,
    evaluate_predictions,
    expected_calibration_error,
    headline_text,
    to_probabilities,
)
from llmcls.recipe.metric_names import METRIC_NAMES, POSITIVE_METRICS

NAMES = ["a", "b", "c"]


def random_case(seed: int, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((rows, 3), dtype=np.float32), (rng.random((rows, 3)) < [0.1, 0.5, 0.9]).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    scores, true = random_case(seed)
    predicted = scores >= 0.5
    found = evaluate_predictions(scores, true, predicted, NAMES)
    for average in ("micro", "macro", "weighted", "samples"):
        for kind, reference in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
            assert found[f"{kind}_{average}"] == pytest.approx(
                reference(true, predicted, average=average, zero_division=0)
            )
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    assert found["average_precision_macro"] == pytest.approx(sk.average_precision_score(true, scores, average="macro"))
    assert found["average_precision_micro"] == pytest.approx(sk.average_precision_score(true, scores, average="micro"))
    assert found["roc_auc_macro"] == pytest.approx(sk.roc_auc_score(true, scores, average="macro"))
    assert [found["per_class"][n]["support"] for n in NAMES] == true.sum(0).tolist()
    assert METRIC_NAMES - {"loss"} <= set(found)


def test_undefined_values_are_none_and_never_nan() -> None:
    scores, true = random_case(0)
    true[:, 0], true[:, 1] = 0, 1
    found = evaluate_predictions(scores, true, scores >= 0.5, NAMES)
    assert found["per_class"]["a"]["average_precision"] is None
    assert found["per_class"]["a"]["roc_auc"] is None
    assert found["per_class"]["b"]["roc_auc"] is None
    assert found["per_class"]["b"]["average_precision"] == pytest.approx(1.0)
    assert found["roc_auc_macro"] == pytest.approx(sk.roc_auc_score(true[:, 2], scores[:, 2]))
    nothing = evaluate_predictions(scores[:1], true[:1] * 0, scores[:1] > 2, NAMES)
    assert nothing["f1_micro"] == 0.0
    assert nothing["average_precision_macro"] is None
    assert nothing["average_precision_micro"] is None


def test_classes_are_measured_as_one_hot_rows() -> None:
    scores, _ = random_case(1)
    true = np.random.default_rng(2).integers(0, 3, 200)
    predicted = np.arange(3) == scores.argmax(1)[:, None]
    found = evaluate_predictions(scores, true, predicted, NAMES)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(true, scores.argmax(1)))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(true, scores.argmax(1), average="macro"))


def test_the_positive_class_of_a_binary_task_is_measured_first() -> None:
    rng = np.random.default_rng(0)
    positive, true = rng.random(200, dtype=np.float32), rng.integers(0, 2, 200)
    scores = np.stack([1 - positive, positive], axis=1)
    found = evaluate_predictions(scores, true, scores >= 0.5, ["no", "yes"], binary=True)
    assert list(found)[: len(POSITIVE_METRICS)] == list(POSITIVE_METRICS)
    assert found["f1_positive"] == pytest.approx(sk.f1_score(true, positive >= 0.5))
    assert found["recall_positive"] == pytest.approx(sk.recall_score(true, positive >= 0.5))
    assert found["average_precision_positive"] == pytest.approx(sk.average_precision_score(true, positive))
    assert found["f1_micro"] == pytest.approx(sk.accuracy_score(true, positive >= 0.5)), "the other averages stay"
    assert "f1_positive" not in evaluate_predictions(scores, true, scores >= 0.5, ["no", "yes"])
    words = headline_text(found, "binary_classification")
    assert words.startswith(f"F1 of the positive class {found['f1_positive']:.4f}  average precision ")


def test_probabilities_survive_extreme_logits() -> None:
    logits = np.array([[-1e4, 0.0, 1e4]], dtype=np.float32)
    assert to_probabilities(logits, "multi_label_classification").tolist() == [[0.0, 0.5, 1.0]]
    assert to_probabilities(logits, "single_label_classification").tolist() == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize("case", ["no positives", "all positives", "nothing predicted", "all predicted", "one class"])
def test_degenerate_cases_agree_with_scikit_learn_too(case: str) -> None:
    scores, true = random_case(4, rows=30)
    names = NAMES
    if case == "no positives":
        true[:] = 0
    elif case == "all positives":
        true[:] = 1
    elif case == "one class":
        scores, true, names = scores[:, :1], true[:, :1], NAMES[:1]
    bar = {"nothing predicted": 2.0, "all predicted": -1.0}.get(case, 0.5)
    predicted = scores >= bar
    found = evaluate_predictions(scores, true, predicted, names)
    # scikit-learn treats a single column as a binary problem, so it gets the cells.
    for average in ("micro", "macro") if case != "one class" else ("micro",):
        expected = sk.f1_score(
            true.ravel() if case == "one class" else true,
            predicted.ravel() if case == "one class" else predicted,
            average="binary" if case == "one class" else average,
            zero_division=0,
        )
        assert found[f"f1_{average}"] == pytest.approx(expected)
    assert all(np.isfinite(v) for v in found.values() if isinstance(v, float))


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]], dtype=np.float32)
    true = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], dtype=bool)
    # Four cells have 0.9 and half of them are true; four have 0.1 and none is.
    assert expected_calibration_error(p, true, multi_label=True) == pytest.approx((0.4 + 0.1) / 2)
    classes = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=bool)
    assert expected_calibration_error(p, classes, multi_label=False) == pytest.approx(0.4)
    sure = np.array([[1.0, 0.0]], dtype=np.float32)
    assert expected_calibration_error(sure, sure.astype(bool), multi_label=True) == 0


def test_confusions_pair_the_missed_label_with_the_predicted_one() -> None:
    true = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]], dtype=bool)
    predicted = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1]], dtype=bool)
    assert confusions(true, predicted, NAMES) == [
        {"true": "a", "predicted": "b", "rows": 2},
        {"true": "b", "predicted": None, "rows": 1},
    ]
