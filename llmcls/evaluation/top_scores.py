"""Scores of tasks with many labels: of each row the most probable labels only, never an array of rows times labels.

A forward pass makes the logits of all labels for one micro-batch; what is kept of a row are its most probable labels,
its loss, and the sum of its probabilities. Ranks exchange these numbers alone. Everything that comes after (decisions,
metrics, predictions, report) works with the kept labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from llmcls.common.logit import logit
from llmcls.data.labels import LabelSpace
from llmcls.data.marks import from_lists
from llmcls.evaluation.cuts import best_cut
from llmcls.evaluation.objective import Objective
from llmcls.evaluation.thresholds import Thresholds, fixed_thresholds
from llmcls.evaluation.tuning import Tuning, probability_of
from llmcls.recipe.metric_names import LARGEST_K

# What `TopScores.numbers` has of a row.
TOP_NUMBERS = LARGEST_K + 2


@dataclass(frozen=True)
class TopScores:
    """The most probable labels of some rows.

    Attributes
    ----------
    probabilities : float32 sparse [rows, labels]
        Of the kept labels, as many for each row.
    best : int32 [rows, 5]
        The most probable labels in order; of equal ones, the first label.
    losses : float64 [rows], optional
        Cross-entropy of each row, the mean over all labels; None where it is not known.
    sums : float64 [rows], optional
        The sum of the probabilities of all labels.
    """

    probabilities: sparse.csr_matrix
    best: np.ndarray
    losses: np.ndarray | None = None
    sums: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.probabilities.shape[0])

    @classmethod
    def of(cls, probabilities: sparse.csr_matrix, numbers: np.ndarray) -> TopScores:
        """Scores from the kept probabilities and what `numbers` returned."""
        best = numbers[:, :LARGEST_K].astype(np.int32)
        losses, sums = numbers[:, LARGEST_K:].astype(np.float64).T
        return cls(probabilities, best, losses, sums)

    def numbers(self) -> np.ndarray:
        """The best labels, the loss and the sum of each row, float32 [rows, TOP_NUMBERS]; unknown ones are 0."""
        none = np.zeros(len(self))
        rest = [none if known is None else known for known in (self.losses, self.sums)]
        return np.column_stack([self.best, *rest]).astype(np.float32)


def top_of(probabilities: np.ndarray, kept: int) -> TopScores:
    """The most probable labels of a few rows of which all probabilities are known, float32 [rows, labels]."""
    kept = min(kept, probabilities.shape[1])
    numbers = np.argpartition(-probabilities, kept - 1, axis=1)[:, :kept]
    values = np.take_along_axis(probabilities, numbers, axis=1)
    order = np.lexsort((numbers, -values), axis=1)
    numbers, values = (np.take_along_axis(part, order, axis=1) for part in (numbers, values))
    found = kept_probabilities(values, numbers, probabilities.shape[1])
    return TopScores(found, numbers[:, :LARGEST_K].astype(np.int32))


def kept_probabilities(values: np.ndarray, numbers: np.ndarray, count: int) -> sparse.csr_matrix:
    """Values [rows, kept] of the labels with these numbers, sparse [rows, labels]."""
    offsets = np.arange(0, numbers.size + 1, numbers.shape[1])
    found = sparse.csr_matrix((values.ravel(), numbers.ravel().astype(np.int32), offsets), (len(numbers), count))
    found.sort_indices()
    return found


def together(parts: list[TopScores]) -> TopScores:
    """Chunks of rows as one."""
    losses = [part.losses for part in parts if part.losses is not None]
    sums = [part.sums for part in parts if part.sums is not None]
    return TopScores(
        sparse.vstack([part.probabilities for part in parts], format="csr"),
        np.concatenate([part.best for part in parts]),
        np.concatenate(losses) if losses else None,
        np.concatenate(sums) if sums else None,
    )


def kept_hits(probabilities: sparse.csr_matrix, true: sparse.csr_matrix) -> np.ndarray:
    """Whether each kept label of a row is true, bool [kept labels], in the order of ``probabilities.data``."""
    return np.isin(cells_of_marks(probabilities), cells_of_marks(true))


def cells_of_marks(marks: sparse.csr_matrix) -> np.ndarray:
    """The number of each stored cell, counted over all rows: int64, in the order of ``marks.data``."""
    rows, width = marks.shape
    return np.repeat(np.arange(rows, dtype=np.int64) * width, np.diff(marks.indptr)) + marks.indices


def shared_threshold(
    probabilities: sparse.csr_matrix, true: sparse.csr_matrix, labels: LabelSpace, tuning: Tuning
) -> Thresholds:
    """One threshold for all labels, the best for micro-F_beta on the kept labels of scored rows.

    Thousands of labels have too few rows each for thresholds of their own. The search is exact: among all cuts between
    two kept probabilities, and with the true labels that were not kept counted as missed.

    Parameters
    ----------
    probabilities : float32 sparse [rows, labels]
        The kept ones.
    true : sparse [rows, labels]
    labels : LabelSpace
    tuning : Tuning
    """
    if tuning.rule == "fixed":
        return fixed_thresholds(len(labels.names), tuning.fixed, tuning.at_least_one)
    objective = shared_objective(tuning, labels)
    hits = kept_hits(probabilities, true)
    cut = best_cut(logit(probabilities.data), hits, objective, positives=int(true.getnnz()))
    value = probability_of(cut)
    reason = f"one for all {len(labels.names):,} labels: most have too few rows for one of their own"
    return Thresholds("global", [value] * len(labels.names), tuning.at_least_one, objective.name, reason)


def shared_objective(tuning: Tuning, labels: LabelSpace) -> Objective:
    """What `shared_threshold` is best for: micro-F_beta, or the highest recall at a precision."""
    wanted = tuning.plan(labels).objective
    return Objective("micro", wanted.beta, wanted.precision)


def decide_top(found: sparse.csr_matrix, thresholds: Thresholds, labels: LabelSpace) -> sparse.csr_matrix:
    """Decide which labels each row gets: the kept ones at or above their threshold, and their ancestors.

    Parameters
    ----------
    found : float32 sparse [rows, labels]
        The probabilities of the kept labels.
    thresholds : Thresholds
    labels : LabelSpace

    Returns
    -------
    bool sparse [rows, labels]
    """
    values = np.asarray(thresholds.values)
    predicted = sparse.csr_matrix((found.data >= values[found.indices], found.indices, found.indptr), found.shape)
    if thresholds.at_least_one:
        above = logit(found.data) - logit(values[found.indices])
        rows = np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))
        # The last of each row, in ascending order.
        order = np.lexsort((-found.indices, above, rows))
        closest = order[found.indptr[1:] - 1]
        without = np.add.reduceat(predicted.data.astype(np.int64), found.indptr[:-1]) == 0
        predicted.data[closest[without]] = True
    predicted = predicted.copy()
    predicted.eliminate_zeros()
    return with_ancestors(predicted, labels)


def with_ancestors(marks: sparse.csr_matrix, labels: LabelSpace) -> sparse.csr_matrix:
    """Mark the ancestors of every marked label, bool sparse [rows, labels]."""
    if not labels.hierarchy:
        return marks
    implied = from_lists(labels.ancestors(), len(labels.names))
    both = (marks.astype(np.float32) + marks.astype(np.float32) @ implied).astype(bool)
    both.sort_indices()
    return both
