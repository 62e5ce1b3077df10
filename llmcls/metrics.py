"""Metrics of a classifier: scikit-learn's, with one vocabulary and undefined values as None."""

from __future__ import annotations

from typing import Any

import numpy as np

_AVERAGES = ("micro", "macro", "weighted", "samples")
METRIC_NAMES = frozenset(
    ["loss", "accuracy", "hamming_loss", "average_precision_macro", "roc_auc_macro"]
    + [f"{kind}_{average}" for kind in ("f1", "precision", "recall") for average in _AVERAGES]
)


def metric_direction(name: str) -> int:
    """+1 when more is better, -1 when less is."""
    return -1 if name in ("loss", "hamming_loss") else 1


def to_probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Sigmoid of each label (multi-label) or softmax over classes.

    Parameters
    ----------
    logits: float32 [rows, labels]

    Returns
    -------
    float32 [rows, labels], computed in float64: no logit overflows.
    """
    x = logits.astype(np.float64)
    if problem_type == "multi_label_classification":
        return (0.5 * (1.0 + np.tanh(0.5 * x))).astype(np.float32)
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


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
    from sklearn.metrics import accuracy_score, hamming_loss, precision_recall_fscore_support

    true = labels.astype(bool) if labels.ndim == 2 else np.arange(len(label_names)) == labels[:, None]
    metrics: dict[str, Any] = {}
    for average in _AVERAGES:
        precision, recall, f1, _ = precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
        metrics[f"f1_{average}"] = float(f1)
        metrics[f"precision_{average}"] = float(precision)
        metrics[f"recall_{average}"] = float(recall)
    metrics["accuracy"] = float(accuracy_score(true, predicted))
    metrics["hamming_loss"] = float(hamming_loss(true, predicted))
    columns = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
    ranking = [_ranking_metrics(true[:, i], probabilities[:, i]) for i in range(len(label_names))]
    for key in ("average_precision", "roc_auc"):
        defined = [r[key] for r in ranking if r[key] is not None]
        metrics[f"{key}_macro"] = float(np.mean(defined)) if defined else None
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


def _ranking_metrics(true: np.ndarray, scores: np.ndarray) -> dict[str, float | None]:
    """Threshold-free metrics of one label; None where only one class occurs."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if not true.any():
        return {"average_precision": None, "roc_auc": None}
    auc = None if true.all() else float(roc_auc_score(true, scores))
    return {"average_precision": float(average_precision_score(true, scores)), "roc_auc": auc}
