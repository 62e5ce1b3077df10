"""Metrics of tasks with many labels, from sparse marks: those of `llmcls.evaluation.metrics`, and P@k and PSP@k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import bootstrap_intervals
from llmcls.evaluation.objective import f_beta
from llmcls.evaluation.top_scores import TopScores, cells_of_marks, kept_hits
from llmcls.recipe.metric_names import AT_K, LARGEST_K, RANKED_METRICS

# Training rows from which on a label is in a band of frequency.
BANDS = {"head": 100, "torso": 10, "tail": 0}
_BINS = 15


@dataclass(frozen=True)
class Frequencies:
    """How frequent the labels are in training.

    Attributes
    ----------
    counts : int64 [labels]
        Training rows of each label.
    rows : int
        Training rows.
    a, b : float
        Parameters of the propensities, see `inverse_propensities`.
    """

    counts: np.ndarray
    rows: int
    a: float = 0.55
    b: float = 1.5

    def inverse_propensities(self) -> np.ndarray:
        """How much a hit of each label counts, float64 [labels].

        Notes
        -----
        1 / p_l = 1 + C (N_l + B)^-A with C = (log N - 1) (B + 1)^A, where N is the number of training rows and N_l
        those with label l (Jain, Prabhu and Varma 2016, "Extreme Multi-label Loss Functions for Recommendation,
        Tagging, Ranking & Other Missing Label Applications", equation 3 and section 5). A = 0.55 and B = 1.5 are the
        values of that paper for data without their own, and of the XMC repository for AmazonCat-13K.

        Examples
        --------
        >>> Frequencies(np.array([1000, 1]), 10_000).inverse_propensities().round(2)
        array([1.3 , 9.21])
        """
        c = (np.log(self.rows) - 1) * (self.b + 1) ** self.a
        return 1.0 + c * (self.counts + self.b) ** -self.a


def evaluate_top(
    scores: TopScores, true: sparse.csr_matrix, predicted: sparse.csr_matrix, labels: LabelSpace, found: Frequencies
) -> dict[str, Any]:
    """All metrics of decided rows.

    Parameters
    ----------
    scores : TopScores
    true, predicted : bool sparse [rows, labels]
        The labels and the decisions.
    labels : LabelSpace
    found : Frequencies
        Of the training rows.

    Returns
    -------
    dict
        The metrics of `llmcls.evaluation.metrics.evaluate_predictions` with the same values, except those that need
        all probabilities; `RANKED_METRICS`; "bands", see `by_band`; and "per_class", by label. "loss" and
        "calibration_error" are there if the scores have losses and sums.
    """
    metrics: dict[str, Any] = {} if scores.losses is None else {"loss": float(scores.losses.mean())}
    if scores.sums is not None:
        metrics["calibration_error"] = calibration_error(scores, true)
    metrics |= ranked_metrics(scores.best, true, found.inverse_propensities())
    return metrics | metrics_with_labels(true, predicted, labels, found)


def metrics_with_labels(
    true: sparse.csr_matrix, predicted: sparse.csr_matrix, labels: LabelSpace, found: Frequencies
) -> dict[str, Any]:
    """The part of `evaluate_top` that depends on decisions: what `decision_metrics` has, "bands" and "per_class"."""
    metrics: dict[str, Any] = dict(decision_metrics(true, predicted))
    per_class = _per_class(true, predicted)
    metrics["bands"] = by_band(per_class, found.counts)
    metrics["per_class"] = {
        name: {key: int(values[i]) if key == "support" else float(values[i]) for key, values in per_class.items()}
        for i, name in enumerate(labels.names)
    }
    return metrics


def decision_metrics(true: sparse.csr_matrix, predicted: sparse.csr_matrix) -> dict[str, float]:
    """Precision, recall and F1 of every average, accuracy and Hamming loss, from counts. 0/0 is 0.

    Parameters
    ----------
    true, predicted : bool sparse [rows, labels]
    """
    hits = true.multiply(predicted)
    counted = {
        "labels": [_sums(m, 0) for m in (hits, predicted, true)],
        "rows": [_sums(m, 1) for m in (hits, predicted, true)],
    }
    both, selected, positives = counted["labels"]
    metrics: dict[str, float] = {}
    for average, of in (("micro", None), ("macro", "labels"), ("weighted", "labels"), ("samples", "rows")):
        counts = [np.array([c.sum()]) for c in counted["labels"]] if of is None else counted[of]
        weights = positives if average == "weighted" else np.ones(len(counts[0]))
        for name, values in zip(("f1", "precision", "recall"), _rates(*counts), strict=True):
            metrics[f"{name}_{average}"] = float((values * weights).sum() / max(weights.sum(), 1e-12))
    tp, chosen, given = counted["rows"]
    metrics["accuracy"] = float(((tp == chosen) & (tp == given)).mean())
    metrics["hamming_loss"] = float((selected + positives - 2 * both).sum() / np.prod(true.shape))
    return metrics


def ranked_metrics(best: np.ndarray, true: sparse.csr_matrix, inverse_propensities: np.ndarray) -> dict[str, float]:
    """P@k and PSP@k for k = 1, 3, 5.

    Parameters
    ----------
    best : int [rows, 5]
        The most probable labels of each row, in order.
    true : bool sparse [rows, labels]
    inverse_propensities : float64 [labels]

    Notes
    -----
    P@k is the share of true labels among the k most probable ones. PSP@k weights each of these by 1 / p_l (Jain et al.
    2016, section 3) and, as in the XMC repository (Bhatia et al. 2016, "The Extreme Classification Repository"),
    divides the mean over rows by the largest mean that any ranking could reach, so that 1 is perfect.
    """
    ranked = np.arange(len(best), dtype=np.int64)[:, None] * true.shape[1] + best
    hits = np.isin(ranked, cells_of_marks(true))
    gains = hits * inverse_propensities[best]
    ideal = _largest_gains(true, inverse_propensities)
    metrics = {f"precision_at_{k}": float(hits[:, :k].mean()) for k in AT_K}
    for k in AT_K:
        reached, possible = gains[:, :k].sum(), ideal[:, :k].sum()
        metrics[f"propensity_precision_at_{k}"] = float(reached / possible) if possible else 0.0
    return metrics


def ranked_text(metrics: dict[str, Any]) -> str:
    """P@k and PSP@k as text.

    Examples
    --------
    >>> ranked_text({name: 0.5 for name in RANKED_METRICS})
    'P@1/3/5 0.500/0.500/0.500  PSP@1/3/5 0.500/0.500/0.500'
    """
    numbers = [f"{metrics[name]:.3f}" for name in RANKED_METRICS]
    count, ks = len(AT_K), "/".join(map(str, AT_K))
    return f"P@{ks} {'/'.join(numbers[:count])}  PSP@{ks} {'/'.join(numbers[count:])}"


def _largest_gains(true: sparse.csr_matrix, inverse_propensities: np.ndarray) -> np.ndarray:
    """The largest 1 / p_l of the true labels of each row, in order; 0 beyond them. float64 [rows, 5]."""
    rows = np.repeat(np.arange(true.shape[0]), np.diff(true.indptr))
    gains = inverse_propensities[true.indices]
    order = np.lexsort((-gains, rows))
    place = np.arange(len(rows)) - true.indptr[rows]
    found = np.zeros((true.shape[0], LARGEST_K))
    first = place < LARGEST_K
    found[rows[first], place[first]] = gains[order][first]
    return found


def calibration_error(scores: TopScores, true: sparse.csr_matrix) -> float:
    """As `llmcls.evaluation.metrics.expected_calibration_error` of all cells.

    The labels that were not kept count in the lowest interval, where they are unless a row has more labels with a
    probability above 1/15 than are kept.
    """
    if scores.sums is None:
        raise ValueError("the sums of all probabilities are not known")
    kept = scores.probabilities
    confidence, hits = kept.data.astype(np.float64), kept_hits(kept, true)
    interval = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    predicted, correct = (np.bincount(interval, weights, minlength=_BINS) for weights in (confidence, hits))
    predicted[0] += scores.sums.sum() - confidence.sum()
    correct[0] += true.getnnz() - hits.sum()
    return float(np.abs(predicted - correct).sum() / np.prod(true.shape, dtype=np.float64))


def by_band(per_class: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, dict[str, Any]]:
    """Metrics of frequent and rare labels: "head" from 100 training rows on, "torso" from 10 on, and "tail".

    Returns
    -------
    dict
        For each band "from", the fewest training rows; "labels"; "evaluated", those that the rows have; "support", how
        often; and the mean "f1_macro", "precision_macro" and "recall_macro" of the evaluated ones, None without any.
    """
    bands, above = {}, np.inf
    for name, fewest in BANDS.items():
        inside = (counts >= fewest) & (counts < above)
        seen = inside & (per_class["support"] > 0)
        means = {f"{key}_macro": float(per_class[key][seen].mean()) if seen.any() else None
                 for key in ("f1", "precision", "recall")}  # fmt: skip
        support = int(per_class["support"][inside].sum())
        bands[name] = {
            "from": fewest, "labels": int(inside.sum()), "evaluated": int(seen.sum()), "support": support, **means
        }  # fmt: skip
        above = fewest
    return bands


def top_uncertainty(true: sparse.csr_matrix, predicted: sparse.csr_matrix, labels: LabelSpace) -> dict[str, Any]:
    """As `llmcls.evaluation.scoring.uncertainty`, from sparse marks."""
    return {"intervals": bootstrap_intervals(true, predicted), "confusions": _confusions(true, predicted, labels)}


def _confusions(
    true: sparse.csr_matrix, predicted: sparse.csr_matrix, labels: LabelSpace, top: int = 20
) -> list[dict[str, Any]]:
    """As `llmcls.evaluation.metrics.confusions`."""
    hits = true.multiply(predicted)
    missed, extra = (m.astype(np.int64) - hits.astype(np.int64) for m in (true, predicted))
    for marks in (missed, extra):
        marks.eliminate_zeros()
    alone = missed[np.flatnonzero(extra.getnnz(axis=1) == 0)]
    table = sparse.hstack([missed.T @ extra, sparse.csr_matrix(_sums(alone, 0)[:, None])], format="coo")
    order = np.lexsort((table.col, table.row, -table.data))[:top]
    found = [(int(table.row[i]), int(table.col[i]), int(table.data[i])) for i in order if table.data[i] > 0]
    names = [*labels.names, None]
    return [{"true": names[a], "predicted": names[b], "rows": rows} for a, b, rows in found]


def _per_class(true: sparse.csr_matrix, predicted: sparse.csr_matrix) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and support of each label."""
    hits, selected, positives = (_sums(m, 0) for m in (true.multiply(predicted), predicted, true))
    f1, precision, recall = _rates(hits, selected, positives)
    return {"precision": precision, "recall": recall, "f1": f1, "support": positives}


def _rates(hits: np.ndarray, selected: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F1, precision and recall from counts."""
    return f_beta(hits, selected, positives, 1.0), hits / np.maximum(selected, 1), hits / np.maximum(positives, 1)


def _sums(marks: sparse.csr_matrix, axis: int) -> np.ndarray:
    return np.asarray(marks.astype(np.int64).sum(axis=axis)).ravel()
