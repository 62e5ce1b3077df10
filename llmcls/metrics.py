"""Metrics of a classifier, by scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

METRIC_NAMES = frozenset(
    [
        "loss",
        "f1_micro",
        "f1_macro",
        "f1_weighted",
        "f1_samples",
        "precision_micro",
        "precision_macro",
        "recall_micro",
        "recall_macro",
        "accuracy",
        "hamming_loss",
        "average_precision_macro",
    ]
)


def metric_direction(name: str) -> int:
    """+1 when more is better, -1 when less is."""
    return -1 if name in ("loss", "hamming_loss", "ece") else 1


def to_probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """float32 [n, labels]: sigmoid for multi-label, softmax else."""
    x = logits.astype(np.float64)
    if problem_type == "multi_label_classification":
        return (0.5 * (1 + np.tanh(0.5 * x))).astype(np.float32)
    e = np.exp(x - x.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True)).astype(np.float32)


def evaluate_predictions(probabilities, labels, predicted, label_names, problem_type) -> dict[str, Any]:
    """All metrics."""
    from sklearn.metrics import accuracy_score, average_precision_score, hamming_loss, precision_recall_fscore_support

    true = labels.astype(bool) if labels.ndim == 2 else np.arange(len(label_names)) == labels[:, None]
    out: dict[str, Any] = {}
    for avg in ("micro", "macro", "weighted", "samples"):
        p, r, f, _ = precision_recall_fscore_support(true, predicted, average=avg, zero_division=0)
        out |= {f"f1_{avg}": float(f), f"precision_{avg}": float(p), f"recall_{avg}": float(r)}
    out["accuracy"] = float(accuracy_score(true, predicted))
    out["hamming_loss"] = float(hamming_loss(true, predicted))
    p, r, f, s = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
    ap = [
        float(average_precision_score(true[:, i], probabilities[:, i])) if true[:, i].sum() > 0 else None
        for i in range(len(label_names))
    ]
    defined = [a for a in ap if a is not None]
    out["average_precision_macro"] = float(np.mean(defined)) if defined else None
    out["per_class"] = {
        n: {"precision": float(p[i]), "recall": float(r[i]), "f1": float(f[i]), "support": int(s[i]),
            "average_precision": ap[i]}
        for i, n in enumerate(label_names)
    }  # fmt: skip
    return out
