"""Searches for the cuts of scores at which decisions are best: alone, together, or shared by all labels.

A cut c decides ``score >= c``. Scores are logits, so that cuts can be averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmcls.evaluation.objective import Objective, f_beta

# Counts of true positives, decisions and positives to a value, for each row or each cut.
Value = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

# Coordinate ascent ends by itself when no label improves; this bounds it on very large splits.
SWEEPS = 10


@dataclass(frozen=True)
class Cuts:
    """All cuts of a column that differ in their decisions, from "select nothing" to "select everything".

    Attributes
    ----------
    values : float64 [cuts]
        Midway between two neighbouring scores; 1 beyond them at both ends.
    selected, tp : int64 [cuts]
        Number of elements at or above the cut, and how many of them are true.
    """

    values: np.ndarray
    selected: np.ndarray
    tp: np.ndarray


def all_cuts(scores: np.ndarray, true: np.ndarray) -> Cuts:
    """All cuts of a column. The scores are sorted once.

    Parameters
    ----------
    scores : float64 [n]
        At least one.
    true : bool [n]

    Examples
    --------
    >>> all_cuts(np.array([1.0, 3.0, 3.0]), np.array([False, True, False])).values
    array([4., 2., 0.])
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(true[order])
    last = _ends(ordered)
    after = np.append(ordered[last[:-1] + 1], ordered[-1] - 2.0)
    values = np.append(ordered[0] + 1.0, (ordered[last] + after) / 2)
    return Cuts(values, np.append(0, last + 1), np.append(0, hits[last]))


def _ends(ordered: np.ndarray) -> np.ndarray:
    """The last place of each run of equal scores: equal scores get the same decision."""
    return np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)


def best_cut(scores: np.ndarray, true: np.ndarray, objective: Objective, positives: int | None = None) -> float:
    """The cut of one column with the best F_beta, or the highest recall at a precision.

    Parameters
    ----------
    scores : float64 [n]
    true : bool [n]
    objective : Objective
        Its average does not count. If no cut reaches its precision, the cut with the highest precision is best.
    positives : int, optional
        How many elements are true, if not all of them are in the column.

    Returns
    -------
    float
        Above all scores if no element is true.

    Examples
    --------
    >>> best_cut(np.array([0.25, 0.5, 0.75, 1.0]), np.array([False, False, True, True]), Objective("macro"))
    0.625
    """
    cuts = all_cuts(scores, true)
    all_true = np.asarray(cuts.tp[-1] if positives is None else positives)
    if objective.precision is None:
        value = f_beta(cuts.tp, cuts.selected, all_true, objective.beta)
    else:
        precision = cuts.tp / np.maximum(cuts.selected, 1)
        value = np.where(precision >= objective.precision, 1 + cuts.tp / np.maximum(1, all_true), precision)
    return float(cuts.values[np.argmax(value)])


def binary_cut(scores: np.ndarray, true: np.ndarray, objective: Objective) -> float:
    """The cut of the second class of a binary task for an objective that counts both classes.

    Parameters
    ----------
    scores : float64 [rows]
        Of the second class.
    true : bool [rows]
    objective : Objective
        "exact", "macro" or "weighted".
    """
    cuts = all_cuts(scores, true)
    rows, positives = len(scores), cuts.tp[-1]
    right = (rows - positives) - (cuts.selected - cuts.tp)
    if objective.average == "exact":
        return float(cuts.values[np.argmax(cuts.tp + right)])
    first = f_beta(right, rows - cuts.selected, rows - positives, objective.beta)
    second = f_beta(cuts.tp, cuts.selected, positives, objective.beta)
    share = positives / rows if objective.average == "weighted" else 0.5
    return float(cuts.values[np.argmax((1 - share) * first + share * second)])


def micro_cuts(scores: np.ndarray, true: np.ndarray, beta: float) -> np.ndarray:
    """One cut per label that together have the best micro-averaged F_beta of all combinations.

    Parameters
    ----------
    scores : float64 [rows, labels]
    true : bool [rows, labels]
    beta : float

    Returns
    -------
    float64 [labels]

    Notes
    -----
    Micro-F is a ratio N / D of two sums over labels, N = (1 + b^2) TP and D = b^2 positives + selected. For a given
    value f, the cuts that maximise N - f D can be chosen for each label alone. Setting f to the ratio they reach and
    choosing again ends at the maximum of the ratio (Dinkelbach 1967, "On Nonlinear Fractional Programming").
    """
    columns = [all_cuts(scores[:, i], true[:, i]) for i in range(scores.shape[1])]
    positives = np.array(sum(int(c.tp[-1]) for c in columns))
    value = -1.0
    chosen: list[int] = []
    while True:
        # N - f D of a label, but for the constant f b^2 positives.
        places = [int(np.argmax((1 + beta * beta) * c.tp - max(value, 0.0) * c.selected)) for c in columns]
        tp = sum(int(c.tp[k]) for c, k in zip(columns, places, strict=True))
        selected = sum(int(c.selected[k]) for c, k in zip(columns, places, strict=True))
        reached = float(f_beta(np.array(tp), np.array(selected), positives, beta))
        if reached <= value:
            return np.array([c.values[k] for c, k in zip(columns, chosen, strict=True)])
        value, chosen = reached, places


def cell_cuts(scores: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The cut of each label with the fewest wrong cells, float64 [labels]; arguments as in `micro_cuts`."""
    columns = [all_cuts(scores[:, i], true[:, i]) for i in range(scores.shape[1])]
    return np.array([c.values[np.argmax(2 * c.tp - c.selected)] for c in columns])


def row_value(objective: Objective) -> Value:
    """What a row counts, from its true positives, decisions and positives, for "samples" or "exact"."""
    if objective.average == "exact":
        return lambda tp, selected, positives: ((tp == positives) & (selected == positives)).astype(np.float64)
    return lambda tp, selected, positives: f_beta(tp, selected, positives, objective.beta)


def shared_row_cut(scores: np.ndarray, true: np.ndarray, value: Value) -> float:
    """The cut for all labels with the highest sum of row values.

    Parameters
    ----------
    scores : float64 [rows, labels]
    true : bool [rows, labels]
    value : callable
        From `row_value`.

    Notes
    -----
    Lowering the cut adds cells one by one. What a cell adds to the value of its row depends only on the higher cells of
    that row, so all cuts are tried with two sorts.
    """
    rows, labels = scores.shape
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=1)
    tp = np.cumsum(np.take_along_axis(true, order, axis=1), axis=1)
    positives = true.sum(axis=1, keepdims=True)
    values = value(tp, np.arange(1, labels + 1)[None, :], positives)
    nothing = value(np.zeros((rows, 1)), np.zeros((rows, 1)), positives)
    added = np.diff(values, axis=1, prepend=nothing).ravel()
    cells = ordered.ravel()
    falling = np.argsort(-cells, kind="stable")
    sums = np.append(0.0, np.cumsum(added[falling])[_ends(cells[falling])])
    return float(all_cuts(cells, np.zeros(len(cells), dtype=bool)).values[np.argmax(sums)])


def row_cuts(scores: np.ndarray, true: np.ndarray, objective: Objective) -> np.ndarray:
    """One cut per label with a high mean of row values.

    Parameters
    ----------
    scores : float64 [rows, labels]
    true : bool [rows, labels]
    objective : Objective
        "samples" or "exact".

    Returns
    -------
    float64 [labels]

    Notes
    -----
    Coordinate ascent: each label in turn gets the best of all its cuts, given the decisions for the others, until none
    improves. It starts from the best shared cut and from the cuts of `micro_cuts`, and the better end is taken. This is
    a local maximum: no single label can do better, but another combination might.
    """
    value = row_value(objective)
    # Sorted once, by column.
    falling = np.argsort(-scores.T, axis=1, kind="stable").astype(np.int32)
    starts = [np.full(scores.shape[1], shared_row_cut(scores, true, value)), micro_cuts(scores, true, objective.beta)]
    ends = [_ascend(scores, true, value, falling, start) for start in starts]
    return max(ends, key=lambda end: end[0])[1]


def _ascend(
    scores: np.ndarray, true: np.ndarray, value: Value, falling: np.ndarray, start: np.ndarray
) -> tuple[float, np.ndarray]:
    """The sum of row values where coordinate ascent from some cuts ends, and the cuts, float64 [labels].

    ``falling``, int32 [labels, rows], is the order of the rows by falling score.
    """
    cuts, predicted, positives = start.copy(), scores >= start, true.sum(axis=1)
    tp, selected = (predicted & true).sum(axis=1), predicted.sum(axis=1)
    for _ in range(SWEEPS):
        improved = False
        for i, column in enumerate(scores.T):
            tp -= predicted[:, i] & true[:, i]
            selected -= predicted[:, i]
            gain = value(tp + true[:, i], selected + 1, positives) - value(tp, selected, positives)
            order = falling[i]
            sums = np.append(0.0, np.cumsum(gain[order])[_ends(column[order])])
            # A new cut must be better by more than rounding, so that the search ends.
            if sums.max() > gain[predicted[:, i]].sum() + 1e-9:
                cuts[i] = all_cuts(column, true[:, i]).values[np.argmax(sums)]
                predicted[:, i] = column >= cuts[i]
                improved = True
            tp += predicted[:, i] & true[:, i]
            selected += predicted[:, i]
        if not improved:
            break
    return float(value(tp, selected, positives).sum()), cuts
