"""Streamed metrics of many labels against the dense path and naive references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import resampled
from llmcls.evaluation.metrics import confusions, evaluate_predictions, to_probabilities
from llmcls.evaluation.thresholds import Thresholds, apply_thresholds
from llmcls.evaluation.top_metrics import Frequencies, evaluate_top, top_uncertainty
from llmcls.evaluation.top_scores import TopScores, decide_top, shared_threshold
from llmcls.evaluation.tuning import Tuning, tune_thresholds

ROWS, COUNT, KEPT = 300, 60, 20
LABELS = LabelSpace([f"label {i}" for i in range(COUNT)], ["labels"], "multi_label_classification", separator="|")


def long_tail(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and marks: few labels are frequent, and rows without labels exist."""
    rng = np.random.default_rng(seed)
    true = rng.random((ROWS, COUNT)) < 0.4 / np.arange(1, COUNT + 1)
    logits = (rng.normal(-5, 1.5, (ROWS, COUNT)) + 5 * true).astype(np.float32)
    return logits, true


def top_of(logits: np.ndarray, kept: int = KEPT) -> TopScores:
    """The scores that a forward pass would leave of these logits."""
    probabilities = to_probabilities(logits, LABELS.problem_type)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :kept]
    rows = np.repeat(np.arange(len(logits)), kept)
    found = sparse.csr_matrix((probabilities[rows, order.ravel()], (rows, order.ravel())), logits.shape)
    return TopScores(found, order[:, :5].astype(np.int32), None, probabilities.astype(np.float64).sum(axis=1))


def naive_at_k(logits: np.ndarray, true: np.ndarray, weights: np.ndarray, k: int) -> tuple[float, float]:
    """P@k and PSP@k, row by row as in the definitions."""
    hits, reached, possible = 0, 0.0, 0.0
    for row in range(len(logits)):
        best = sorted(range(COUNT), key=lambda label: (-logits[row, label], label))[:k]
        hits += sum(bool(true[row, label]) for label in best)
        reached += sum(weights[label] for label in best if true[row, label])
        possible += sum(sorted((weights[label] for label in np.flatnonzero(true[row])), reverse=True)[:k])
    return hits / (k * len(logits)), reached / possible


@pytest.mark.parametrize("threshold", ["tuned", 0.5, 0.9999])
def test_metrics_of_kept_labels_are_those_of_all(threshold: Any) -> None:
    logits, true = long_tail()
    scores, marks = top_of(logits), sparse.csr_matrix(true)
    if threshold == "tuned":
        thresholds = shared_threshold(scores.probabilities, marks, LABELS, Tuning())
        dense = tune_thresholds(to_probabilities(logits, LABELS.problem_type), true, LABELS, Tuning(rule="global"))
        assert thresholds.values == pytest.approx(dense.values, abs=1e-12)
    else:
        thresholds = Thresholds("fixed", [threshold] * COUNT)
    probabilities = to_probabilities(logits, LABELS.problem_type)
    predicted = apply_thresholds(probabilities, thresholds, LABELS)
    found = evaluate_top(
        scores, marks, decide_top(scores.probabilities, thresholds, LABELS), LABELS, Frequencies(true.sum(0), ROWS)
    )
    expected = evaluate_predictions(probabilities, true.astype(np.float32), predicted, LABELS.names)
    same = [n for n, v in expected.items() if isinstance(v, float) and not n.startswith(("average_", "roc_"))]
    assert len(same) == 15
    assert {n: found[n] for n in same} == pytest.approx({n: expected[n] for n in same}, abs=1e-12)
    for name, row in found["per_class"].items():
        assert row == pytest.approx({key: expected["per_class"][name][key] for key in row}, abs=1e-12)
    uncertain = top_uncertainty(marks, sparse.csr_matrix(predicted), LABELS)
    assert uncertain["confusions"] == confusions(true, predicted, LABELS.names)


def test_ranked_metrics_are_those_of_their_definitions() -> None:
    logits, true = long_tail()
    counts, rows = 7 * true.sum(0), 7 * ROWS
    # pyxclib's compute_inv_propensity, written out.
    c = (np.log(rows) - 1) * np.power(1.5 + 1, 0.55)
    weights = 1.0 + c * np.power(counts + 1.5, -0.55)
    scores = top_of(logits)
    found = evaluate_top(scores, sparse.csr_matrix(true), scores.probabilities > 0.5, LABELS, Frequencies(counts, rows))
    for k in (1, 3, 5):
        expected = naive_at_k(logits, true, weights, k)
        assert found[f"precision_at_{k}"] == pytest.approx(expected[0], abs=1e-12)
        assert found[f"propensity_precision_at_{k}"] == pytest.approx(expected[1], abs=1e-12)
    perfect = evaluate_top(
        top_of(np.where(true, weights, -5.0)), *[sparse.csr_matrix(true)] * 2, LABELS, Frequencies(counts, rows)
    )
    assert perfect["propensity_precision_at_5"] == pytest.approx(1.0)


def test_bands_hold_every_label_by_its_training_rows() -> None:
    logits, true = long_tail()
    counts = np.where(np.arange(COUNT) < 5, 100, np.where(np.arange(COUNT) < 20, 10, 9))
    scores, marks = top_of(logits), sparse.csr_matrix(true)
    bands = evaluate_top(scores, marks, marks, LABELS, Frequencies(counts, 1000))["bands"]
    assert [(band["from"], band["labels"]) for band in bands.values()] == [(100, 5), (10, 15), (0, 40)]
    assert sum(band["support"] for band in bands.values()) == true.sum()
    assert {band["f1_macro"] for band in bands.values()} == {1.0}


def test_bootstrap_samples_of_sparse_marks_are_those_of_dense_ones() -> None:
    logits, true = long_tail()
    predicted = logits > -1
    draws = np.random.default_rng(0).multinomial(ROWS, np.full(ROWS, 1 / ROWS), size=20)
    dense = resampled(draws, true, predicted)
    found = resampled(draws, *(sparse.csr_matrix(m) for m in (true, predicted)))
    assert all(found[name] == pytest.approx(dense[name], abs=1e-12) for name in dense)
