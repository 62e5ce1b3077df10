"""Metrics of a classifier, computed by scikit-learn, with the same names everywhere. Undefined values are None."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from llmcls.common.logit import sigmoid
from llmcls.data.labels import multi_hot
from llmcls.recipe.metric_names import AVERAGES, POSITIVE_METRICS, headline


def to_probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Sigmoid per label (multi-label) or softmax over classes.

    Parameters
    ----------
    logits : float32 [rows, labels]
    problem_type : str
        As in the recipe.

    Returns
    -------
    float32 [rows, labels]
        Computed in float64.

    Examples
    --------
    >>> to_probabilities(np.array([[0.0, 0.0]], dtype=np.float32), "single_label_classification")
    array([[0.5, 0.5]], dtype=float32)
    """
    x = logits.astype(np.float64)
    if problem_type == "multi_label_classification":
        return sigmoid(x).astype(np.float32)
    return softmax(x, axis=1).astype(np.float32)


def evaluate_predictions(
    probabilities: np.ndarray, labels: np.ndarray, predicted: np.ndarray, label_names: list[str], binary: bool = False
) -> dict[str, Any]:
    """All metrics of a set of predictions.

    Parameters
    ----------
    probabilities : float32 [rows, labels]
    labels : float32 [rows, labels] or int64 [rows]
        Label values as in a `Split`.
    predicted : bool [rows, labels]
        The decisions.
    label_names : list of str
    binary : bool
        Whether the second label is the positive class of a binary task. Its metrics are then added, with the names of
        `POSITIVE_METRICS`.

    Returns
    -------
    dict
        The metrics of `METRIC_NAMES` except "loss", by name, and "per_class": for each label name, a dictionary of its
        metrics. Undefined values, such as the average precision of a label without positives, are None. Precision,
        recall and F1 of 0/0 are 0, as with ``zero_division=0`` of scikit-learn.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    true = multi_hot(labels, len(label_names))
    count = len(label_names)
    # With a single column, scikit-learn would assume a binary problem, so an empty second one is added.
    padded = [np.pad(m, ((0, 0), (0, 1))) if count == 1 else m for m in (true, predicted)]
    indices = list(range(count))
    metrics: dict[str, Any] = {}
    for average in AVERAGES:
        precision, recall, f1, _ = precision_recall_fscore_support(
            *padded, labels=indices, average=average, zero_division=0
        )
        metrics[f"f1_{average}"] = float(f1)
        metrics[f"precision_{average}"] = float(precision)
        metrics[f"recall_{average}"] = float(recall)
    metrics["accuracy"] = float((true == predicted).all(axis=1).mean())
    metrics["hamming_loss"] = float((true != predicted).mean())
    by_label = precision_recall_fscore_support(*padded, labels=indices, average=None, zero_division=0)
    ranking = [_ranking_metrics(true[:, i], probabilities[:, i]) for i in range(len(label_names))]
    pooled = true.ravel(), probabilities.ravel()
    metrics["average_precision_micro"] = float(average_precision_score(*pooled)) if true.any() else None
    for key in ("average_precision", "roc_auc"):
        defined = [value for r in ranking if (value := r[key]) is not None]
        metrics[f"{key}_macro"] = float(np.mean(defined)) if defined else None
    metrics["calibration_error"] = expected_calibration_error(probabilities, true, labels.ndim == 2)
    metrics["per_class"] = {
        name: {
            "precision": float(by_label[0][i]),
            "recall": float(by_label[1][i]),
            "f1": float(by_label[2][i]),
            "support": int(by_label[3][i]),
            **ranking[i],
        }
        for i, name in enumerate(label_names)
    }
    if binary:
        positive = metrics["per_class"][label_names[1]]
        metrics = {name: positive[name.removesuffix("_positive")] for name in POSITIVE_METRICS} | metrics
    return metrics


def headline_text(metrics: dict[str, Any], problem_type: str) -> str:
    """The metrics that are shown first, as text.

    Examples
    --------
    >>> headline_text({"f1_micro": 0.5, "f1_macro": None}, "multi_label_classification")
    'micro-F1 0.5000  macro-F1 undefined'
    """
    shown = {words: metrics[name] for name, words in headline(problem_type).items()}
    return "  ".join(f"{words} {'undefined' if value is None else f'{value:.4f}'}" for words, value in shown.items())


def expected_calibration_error(probabilities: np.ndarray, true: np.ndarray, multi_label: bool, bins: int = 15) -> float:
    """The mean difference between predicted probability and observed frequency.

    Parameters
    ----------
    probabilities : float [rows, labels]
    true : bool [rows, labels]
    multi_label : bool
        Whether every cell counts, or only the most probable class of each row.
    bins : int
        Number of probability intervals of equal width.

    Returns
    -------
    float

    Notes
    -----
    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3: the absolute difference in each interval,
    weighted by its number of values. Single-label: the confidence of the most probable class against its accuracy.
    Multi-label: the probability of every cell against the share of true cells.

    Examples
    --------
    >>> true = np.array([[True], [False]])
    >>> expected_calibration_error(np.array([[0.5], [0.5]]), true, multi_label=True)
    0.0
    >>> expected_calibration_error(np.array([[1.0], [1.0]]), true, multi_label=True)
    0.5
    """
    counts, predicted, correct = reliability_sums(probabilities, true, multi_label, bins)
    return float(np.abs(predicted - correct).sum() / counts.sum())


def reliability_sums(
    probabilities: np.ndarray, true: np.ndarray, multi_label: bool, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many values each interval of probabilities has, the sum of their probabilities, and how many came true.

    Parameters
    ----------
    probabilities, true, multi_label, bins
        As for `expected_calibration_error`.

    Returns
    -------
    counts, predicted, correct : float64 [bins]
    """
    if multi_label:
        confidence, correct = probabilities.ravel().astype(np.float64), true.ravel()
    else:
        best = probabilities.argmax(axis=1)
        rows = np.arange(len(best))
        confidence, correct = probabilities[rows, best].astype(np.float64), true[rows, best]
    interval = np.minimum((confidence * bins).astype(int), bins - 1)
    counts, *sums = (np.bincount(interval, weights, minlength=bins) for weights in (None, confidence, correct))
    return counts.astype(np.float64), sums[0], sums[1].astype(np.float64)


def confusions(true: np.ndarray, predicted: np.ndarray, names: list[str], top: int = 20) -> list[dict[str, Any]]:
    """The most frequent confusions: rows that lack a true label and have a wrong one.

    Parameters
    ----------
    true, predicted : bool [rows, labels]
    names : list of str
        Label names.
    top : int
        Maximum number of results.

    Returns
    -------
    list of dict
        "true" is the missing label, "predicted" the wrong one, and "rows" the number of rows, most frequent first.
        "predicted" is None for rows that lack the label and have no wrong one.

    Examples
    --------
    >>> true = np.array([[True, False], [True, False]])
    >>> confusions(true, np.array([[False, True], [True, False]]), ["a", "b"])
    [{'true': 'a', 'predicted': 'b', 'rows': 1}]
    """
    missed, extra = true & ~predicted, predicted & ~true
    pairs = missed.astype(np.float64).T @ extra.astype(np.float64)
    alone = (missed & ~extra.any(axis=1, keepdims=True)).sum(axis=0)
    table = np.concatenate([pairs, alone[:, None]], axis=1).astype(int)
    order = np.argsort(-table, axis=None, kind="stable")[:top]
    cells = [(*np.unravel_index(i, table.shape), int(table.flat[i])) for i in order if table.flat[i] > 0]
    return [{"true": names[a], "predicted": names[b] if b < len(names) else None, "rows": rows} for a, b, rows in cells]


def _ranking_metrics(true: np.ndarray, scores: np.ndarray) -> dict[str, float | None]:
    """Metrics of a label that do not depend on a threshold; None where they are undefined."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if not true.any():
        return {"average_precision": None, "roc_auc": None}
    auc = None if true.all() else float(roc_auc_score(true, scores))
    return {"average_precision": float(average_precision_score(true, scores)), "roc_auc": auc}
