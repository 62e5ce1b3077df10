"""Metrics of a classifier: scikit-learn's, with one vocabulary and undefined values as None."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from llmcls.common.logit import sigmoid
from llmcls.data.labels import multi_hot
from llmcls.recipe.metric_names import AVERAGES


def to_probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Sigmoid per label (multi-label) or softmax over classes.

    Parameters
    ----------
    logits : float32 [rows, labels]
    problem_type : str
        As in the recipe.

    Returns
    -------
    float32 [rows, labels], computed in float64 so that no logit overflows.
    """
    x = logits.astype(np.float64)
    if problem_type == "multi_label_classification":
        return sigmoid(x).astype(np.float32)
    return softmax(x, axis=1).astype(np.float32)


def evaluate_predictions(
    probabilities: np.ndarray, labels: np.ndarray, predicted: np.ndarray, label_names: list[str]
) -> dict[str, Any]:
    """All metrics of a set of predictions.

    Parameters
    ----------
    probabilities: float32 [rows, labels]
    labels: float32 [rows, labels] of 0/1, or int64 [rows] of class numbers.
    predicted: bool [rows, labels], the decisions.

    Returns
    -------
    Name to value, with ``per_class`` a dictionary by label. A value that has no meaning (average precision of a
    label without a positive) is None; precision, recall and F1 of 0/0 are 0, as scikit-learn's ``zero_division=0``.
    """
    from sklearn.metrics import precision_recall_fscore_support

    true = multi_hot(labels, len(label_names))
    count = len(label_names)
    # A second, empty column: of one alone scikit-learn would believe that it is a binary problem.
    shown = [np.pad(m, ((0, 0), (0, 1))) if count == 1 else m for m in (true, predicted)]
    numbers = list(range(count))
    metrics: dict[str, Any] = {}
    for average in AVERAGES:
        precision, recall, f1, _ = precision_recall_fscore_support(
            *shown, labels=numbers, average=average, zero_division=0
        )
        metrics[f"f1_{average}"] = float(f1)
        metrics[f"precision_{average}"] = float(precision)
        metrics[f"recall_{average}"] = float(recall)
    metrics["accuracy"] = float((true == predicted).all(axis=1).mean())
    metrics["hamming_loss"] = float((true != predicted).mean())
    columns = precision_recall_fscore_support(*shown, labels=numbers, average=None, zero_division=0)
    ranking = [_ranking_metrics(true[:, i], probabilities[:, i]) for i in range(len(label_names))]
    for key in ("average_precision", "roc_auc"):
        defined = [value for r in ranking if (value := r[key]) is not None]
        metrics[f"{key}_macro"] = float(np.mean(defined)) if defined else None
    metrics["calibration_error"] = expected_calibration_error(probabilities, true, labels.ndim == 2)
    metrics["per_class"] = {
        name: {
            "precision": float(columns[0][i]),
            "recall": float(columns[1][i]),
            "f1": float(columns[2][i]),
            "support": int(columns[3][i]),
            **ranking[i],
        }
        for i, name in enumerate(label_names)
    }
    return metrics


def expected_calibration_error(probabilities: np.ndarray, true: np.ndarray, multi_label: bool, bins: int = 15) -> float:
    """The mean gap between stated probability and what came true, in ``bins`` equal intervals weighted by their cells.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3: over classes, the confidence of the most
    probable class against accuracy; for multi-label, every cell's probability against the share of true cells.

    Parameters
    ----------
    probabilities: float [rows, labels]. true: bool [rows, labels].
    """
    if multi_label:
        confidence, came_true = probabilities.ravel().astype(np.float64), true.ravel()
    else:
        best = probabilities.argmax(axis=1)
        rows = np.arange(len(best))
        confidence, came_true = probabilities[rows, best].astype(np.float64), true[rows, best]
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, weights=confidence, minlength=bins) - np.bincount(which, came_true, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def confusions(true: np.ndarray, predicted: np.ndarray, names: list[str], top: int = 20) -> list[dict[str, Any]]:
    """The pairs of labels most often taken for one another: rows that miss ``true`` and wrongly have ``predicted``.

    ``predicted`` is None where rows miss the label and have no wrong one in its place.

    Parameters
    ----------
    true, predicted: bool [rows, labels]
    """
    missed, extra = true & ~predicted, predicted & ~true
    pairs = missed.astype(np.float64).T @ extra.astype(np.float64)
    alone = (missed & ~extra.any(axis=1, keepdims=True)).sum(axis=0)
    table = np.concatenate([pairs, alone[:, None]], axis=1).astype(int)
    order = np.argsort(-table, axis=None, kind="stable")[:top]
    found = [(*np.unravel_index(i, table.shape), int(table.flat[i])) for i in order if table.flat[i] > 0]
    return [{"true": names[a], "predicted": names[b] if b < len(names) else None, "rows": rows} for a, b, rows in found]


def _ranking_metrics(true: np.ndarray, scores: np.ndarray) -> dict[str, float | None]:
    """Threshold-free metrics of one label; None where only one class occurs."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if not true.any():
        return {"average_precision": None, "roc_auc": None}
    auc = None if true.all() else float(roc_auc_score(true, scores))
    return {"average_precision": float(average_precision_score(true, scores)), "roc_auc": auc}
