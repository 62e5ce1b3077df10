"""The points of the diagrams that show a classifier: precision over recall, reliability, and who is taken for whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmcls.evaluation.metrics import reliability_sums

# A diagram is a few hundred pixels wide.
POINTS = 160


@dataclass(frozen=True)
class Reliability:
    """An interval of predicted probabilities that has values.

    Attributes
    ----------
    predicted : float
        Their mean.
    observed : float
        The share of them that came true.
    count : int
        How many there are.
    """

    predicted: float
    observed: float
    count: int


def precision_recall(true: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    """Points of a curve of precision over recall, from recall 0 to 1.

    Parameters
    ----------
    true : bool [cells]
    scores : float [cells]
        Higher where the label is more probable.

    Returns
    -------
    list of (recall, precision)
        At most about `POINTS`, each of the whole curve. Empty without positives, for which recall is undefined.

    Examples
    --------
    >>> precision_recall(np.array([True, False, True]), np.array([0.9, 0.8, 0.7]))
    [(0.0, 1.0), (0.5, 1.0), (1.0, 0.6666666666666666)]
    """
    if not true.any():
        return []
    order = np.argsort(-scores, kind="stable")
    hits, last_of_score = np.cumsum(true[order]), np.append(np.diff(scores[order]) != 0, True)
    recall, precision = hits / hits[-1], hits / np.arange(1, len(hits) + 1)
    # Equal scores get the label together. Between two points of equal recall, the later one is less precise.
    kept = np.flatnonzero(last_of_score)
    kept = kept[np.unique(recall[kept], return_index=True)[1]]
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, POINTS).round().astype(int))]
    found = [(float(r), float(p)) for r, p in zip(recall[kept], precision[kept], strict=True)]
    return found if found[0][0] == 0 else [(0.0, found[0][1]), *found]


def reliability(probabilities: np.ndarray, true: np.ndarray, multi_label: bool, bins: int = 15) -> list[Reliability]:
    """Predicted probability against observed frequency, in intervals of equal width.

    Parameters
    ----------
    probabilities, true, multi_label, bins
        As for `llmcls.evaluation.metrics.expected_calibration_error`, which is the mean of the gaps between
        ``predicted`` and ``observed``, weighted by ``count``.
    """
    counts, predicted, correct = reliability_sums(probabilities, true, multi_label, bins)
    return [
        Reliability(float(p / n), float(c / n), int(n))
        for n, p, c in zip(counts, predicted, correct, strict=True)
        if n > 0
    ]


def confusion_matrix(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """How many rows of each class were predicted as each class.

    Parameters
    ----------
    true, predicted : bool [rows, labels]
        One class per row.

    Returns
    -------
    int64 [labels, labels]
        By true class, then by predicted class.

    Examples
    --------
    >>> confusion_matrix(np.array([[True, False], [True, False]]), np.array([[True, False], [False, True]]))
    array([[1, 1],
           [0, 0]])
    """
    count = true.shape[1]
    cells = true.argmax(axis=1) * count + predicted.argmax(axis=1)
    return np.bincount(cells, minlength=count * count).reshape(count, count)
