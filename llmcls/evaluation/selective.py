"""Decisions with a promise: a label only where it is right often enough, and sets that contain the true labels.

Both are fitted on rows that the model was not trained on, and hold for new rows like them. They read probabilities as
scores only, so they hold for a model that is not calibrated too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Probability that the precision of new rows is below the target after all, because few rows were seen.
RISK = 0.1
# Where the tests begin: shares of the decisions. One start, at the most probable ones, would end at a mistake there.
STARTS = (0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Abstention:
    """The probability from which a decision is kept.

    Attributes
    ----------
    target : float
        The precision that kept decisions shall have.
    cut : float, optional
        None if no cut is known to reach the target.
    kept : float
        Share of the decisions on the fitted rows that are kept.
    precision : float, optional
        Of these.
    """

    target: float
    cut: float | None
    kept: float
    precision: float | None


@dataclass(frozen=True)
class LabelSets:
    """The probability from which a label belongs to the set of a row.

    Attributes
    ----------
    coverage : float
        With one label per row, the share of rows whose set contains it; with several, the mean share of a row's labels
        that its set contains.
    cut : float
        0 if only the set of all labels promises the coverage.
    size : float
        Mean number of labels in a set, on the fitted rows.
    """

    coverage: float
    cut: float
    size: float


def fit_abstention(
    probabilities: np.ndarray, predicted: np.ndarray, true: np.ndarray, target: float, risk: float = RISK
) -> Abstention:
    """The lowest probability above which decisions have a target precision.

    Parameters
    ----------
    probabilities : float32 [rows, labels]
    predicted, true : bool [rows, labels]
    target : float
        Above 0 and below 1.
    risk : float
        Probability that the promise fails.

    Notes
    -----
    Each predicted label of each row is a decision. Fixed-sequence testing with several starts of Angelopoulos et al.
    2021, "Learn then Test: calibrating predictive algorithms to achieve risk control": from each start on, one more
    decision is kept as long as a binomial test rejects that the precision of all kept so far is below the target. The
    starts share the risk.
    """
    from scipy.stats import binom

    scores, right = probabilities[predicted], true[predicted]
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    count, each = len(scores), risk / len(STARTS)
    # Fewer decisions prove nothing, even if all are right.
    first = math.ceil(math.log(each) / math.log(target))
    if count < first:
        return Abstention(target, None, 0.0, None)
    numbers = np.arange(first, count + 1)
    passed = binom.cdf(np.cumsum(~right)[first - 1 :], numbers, 1 - target) <= each
    # A cut keeps all decisions of equal probability.
    whole = np.append(scores[1:] < scores[:-1], True)[first - 1 :]
    kept = 0
    for start in {max(first, math.ceil(share * count)) - first for share in STARTS}:
        rest = passed[start:]
        possible = np.flatnonzero(whole[start : start + (len(rest) if rest.all() else int(rest.argmin()))])
        if len(possible):
            kept = max(kept, int(numbers[start + possible[-1]]))
    if not kept:
        return Abstention(target, None, 0.0, None)
    return Abstention(target, float(scores[kept - 1]), kept / count, float(right[:kept].mean()))


def fit_label_sets(probabilities: np.ndarray, true: np.ndarray, coverage: float) -> LabelSets:
    """The highest probability whose sets have a coverage.

    Parameters
    ----------
    probabilities : float32 [rows, labels]
    true : bool [rows, labels]
    coverage : float
        Between 0 and 1.

    Notes
    -----
    With one label per row, split conformal prediction (Vovk et al. 2005; Sadinle et al. 2019, "Least ambiguous
    set-valued classifiers with bounded error levels"). With several, conformal risk control of the share of labels that
    are missed (Angelopoulos et al. 2022), of which the former is a special case. The coverage is a mean over rows.
    """
    rows = len(true)
    each = np.repeat(1.0 / np.maximum(true.sum(axis=1), 1), true.sum(axis=1))
    scores = probabilities[true]
    order = np.argsort(scores, kind="stable")
    scores, missed = scores[order], np.cumsum(each[order])
    # Leaving out the first k labels misses this share of the labels of a row, and 1 of one more row at worst.
    affordable = int(np.searchsorted(missed + 1.0, (1.0 - coverage) * (rows + 1) + 1e-9, side="right"))
    if affordable == 0 and (1.0 - coverage) * (rows + 1) < 1.0:
        cut = 0.0
    else:
        cut = float(scores[affordable]) if affordable < len(scores) else 1.0
    return LabelSets(coverage, cut, float((probabilities >= cut).sum(axis=1).mean()))


def keep(probabilities: np.ndarray, predicted: np.ndarray, abstention: Abstention) -> np.ndarray:
    """The decisions that are kept, bool [rows, labels]."""
    if abstention.cut is None:
        return np.zeros_like(predicted)
    return predicted & (probabilities >= np.float32(abstention.cut))


def label_sets(probabilities: np.ndarray, sets: LabelSets) -> np.ndarray:
    """The set of each row, bool [rows, labels]."""
    found: np.ndarray = probabilities >= np.float32(sets.cut)
    return found
