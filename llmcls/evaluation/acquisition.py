"""Which texts to label next: those that a classifier is unsure of, no two of them alike.

Unsure texts alone are often the same question many times. So the most unsure ones are clustered by their states, and
one text of each cluster is taken (Zhdanov 2019, "Diverse mini-batch Active Learning"). `bench/labelling.py` compares
this with random choice.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from llmcls.common.logit import logit, sigmoid
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.thresholds import Thresholds

# So many of the most unsure texts are clustered for each that is taken.
CANDIDATES = 10
# Rounds of k-means; the clusters need not be perfect.
ROUNDS = 30


@dataclass(frozen=True)
class Doubt:
    """How unsure a classifier is.

    Attributes
    ----------
    amount : float32 [rows]
        0 is sure. Of classes, 1 if two are equally probable; of labels with a threshold, 1 for each that is at it.
    label : int64 [rows]
        The label in question: the second most probable class, or the label with the most doubt.
    """

    amount: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Choice:
    """The rows to label.

    Attributes
    ----------
    rows : int64 [chosen]
        The most useful first.
    stands_for : int64 [chosen]
        Unsure texts in the cluster of each.
    """

    rows: np.ndarray
    stands_for: np.ndarray


def doubt(probabilities: np.ndarray, thresholds: Thresholds, labels: LabelSpace) -> Doubt:
    """How unsure a classifier is of each row, and of which label.

    Parameters
    ----------
    probabilities : float32 [rows, labels]
        Calibrated.
    thresholds : Thresholds
    labels : LabelSpace

    Returns
    -------
    Doubt

    Notes
    -----
    For classes it is one minus the margin between the two most probable ones (Scheffer et al. 2001). For labels with a
    threshold it is the sum of their binary entropies in bits, of probabilities whose logits are shifted so that the
    threshold is at one half. With several labels per text, `bench/labelling.py --held-out` found the sum better than
    the largest one, which tells only of one label.

    Examples
    --------
    >>> labels = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")
    >>> doubt(np.array([[0.5, 0.4], [0.1, 1.0]]), Thresholds("per_class", [0.5, 0.4]), labels).amount.round(2)
    array([2.  , 0.47])
    """
    if labels.multi_label or labels.binary:
        entropy = _entropy(probabilities, np.asarray(thresholds.values))
        if labels.binary:
            return Doubt(entropy[:, 1], 1 - (probabilities[:, 1] >= thresholds.values[1]).astype(np.int64))
        return Doubt(entropy.sum(axis=1), entropy.argmax(axis=1))
    second, first = np.argsort(probabilities, axis=1)[:, -2:].T
    rows = np.arange(len(probabilities))
    return Doubt(1 - (probabilities[rows, first] - probabilities[rows, second]), second)


def _entropy(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Binary entropies in bits, 1 at the threshold: float [rows, labels]."""
    shifted = logit(probabilities) - logit(thresholds)
    given = sigmoid(shifted)
    nats = given * np.logaddexp(0, -shifted) + (1 - given) * np.logaddexp(0, shifted)
    found: np.ndarray = nats / np.log(2)
    return found


def candidates(amount: np.ndarray, count: int) -> np.ndarray:
    """The rows among which `spread` chooses: the most unsure ones, int64 [at most CANDIDATES * count], by row.

    Parameters
    ----------
    amount : float32 [rows]
        Of `doubt`.
    count : int
        Rows to choose.
    """
    most = min(len(amount), CANDIDATES * count)
    return np.sort(np.argsort(-amount, kind="stable")[:most])


def spread(states: np.ndarray, amount: np.ndarray, count: int, seed: int) -> Choice:
    """Choose rows that are unlike each other and unsure.

    Parameters
    ----------
    states : float32 [rows, hidden]
        Of the candidates.
    amount : float32 [rows]
        How unsure each is.
    count : int
        Rows to choose, at least 1. All rows are chosen if there are not more.
    seed : int
        Of the first centres of the clusters.

    Returns
    -------
    Choice
        By the doubt that their clusters have together, the largest first.
    """
    from sklearn.cluster import KMeans

    if len(states) <= count:
        order = np.argsort(-amount, kind="stable")
        return Choice(order, np.ones(len(order), dtype=np.int64))
    features = directions(states)
    with warnings.catch_warnings():
        # Fewer different texts than clusters; the others are taken by their doubt.
        warnings.simplefilter("ignore")
        found = KMeans(count, n_init=1, max_iter=ROUNDS, random_state=seed).fit(
            features, sample_weight=np.maximum(amount, 1e-6)
        )
    distance = ((features - found.cluster_centers_[found.labels_]) ** 2).sum(axis=1)
    weight = np.bincount(found.labels_, weights=amount, minlength=count)
    size = np.bincount(found.labels_, minlength=count)
    # The first of each cluster in the order of distance is the one closest to its centre.
    nearest = np.argsort(distance, kind="stable")
    groups, first = np.unique(found.labels_[nearest], return_index=True)
    order = np.argsort(-weight[groups], kind="stable")
    rows = nearest[first][order]
    unsure = np.argsort(-amount, kind="stable")
    rest = unsure[~np.isin(unsure, rows)][: count - len(rows)]
    stands_for = np.concatenate([size[groups][order], np.ones(len(rest), dtype=np.int64)])
    return Choice(np.concatenate([rows, rest]), stands_for)


def directions(states: np.ndarray) -> np.ndarray:
    """States with every feature at mean 0 and deviation 1, scaled to length 1: float32 [rows, hidden].

    The states of a decoder share a large mean and a few large features, in which texts do not differ.
    """
    deviation = states.std(axis=0)
    scaled = (states - states.mean(axis=0)) / np.where(deviation > 1e-6 * deviation.max(initial=0), deviation, 1.0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    found: np.ndarray = (scaled / np.maximum(length, 1e-12)).astype(np.float32)
    return found
