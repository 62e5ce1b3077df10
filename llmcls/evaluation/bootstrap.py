"""Bootstrap: intervals of F1 and accuracy, and the distribution of the difference between two sets of runs."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from llmcls.data.marks import labels_per_row

# bool [rows, labels]: an array, with many labels scipy.sparse.csr_matrix, which has no types.
Marks: TypeAlias = Any

RESAMPLES = 1000
NAMES = ("f1_micro", "f1_macro", "accuracy")
# Numbers that a block of samples may need.
_BLOCK = 20_000_000


def interval_names(binary: bool) -> tuple[str, ...]:
    """The metrics with intervals: `NAMES`, and F1 of the positive class of a binary task first."""
    return ("f1_positive", *NAMES) if binary else NAMES


def bootstrap_intervals(
    true: Marks, predicted: Marks, seed: int = 0, resamples: int = RESAMPLES, binary: bool = False
) -> dict[str, list[float]]:
    """95 % intervals of the metrics `interval_names`.

    Parameters
    ----------
    true, predicted : bool [rows, labels]
    seed : int
    resamples : int
        Number of bootstrap samples.
    binary : bool
        Whether the second label is the positive class of a binary task.

    Returns
    -------
    dict
        For each of `interval_names`, the lower and the upper limit.

    Notes
    -----
    Percentile intervals over resampled rows (Efron & Tibshirani 1993, chapter 13). Rows with the same labels and the
    same decisions are the same for every metric. So the number of rows of each such pattern is drawn from a multinomial
    distribution, and the cost depends on the number of patterns, not of rows.

    Examples
    --------
    >>> true = np.array([[True, False], [False, True]])
    >>> bootstrap_intervals(true, true)["accuracy"]
    [1.0, 1.0]
    """
    if sparse.issparse(true):
        return mean_intervals(true, [predicted], seed, resamples)
    patterns, counts = np.unique(np.concatenate([true, predicted], axis=1), axis=0, return_counts=True)
    true, predicted = patterns[:, : true.shape[1]], patterns[:, true.shape[1] :]
    draws = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    values = resampled(draws, true, predicted)
    return {n: [float(v) for v in np.percentile(values[n], [2.5, 97.5])] for n in interval_names(binary)}


def mean_intervals(
    true: Marks, runs: list[Marks], seed: int = 0, resamples: int = RESAMPLES, binary: bool = False
) -> dict[str, list[float]]:
    """95 % intervals of the mean of the metrics over runs, for other rows and other seeds.

    Parameters
    ----------
    true : bool [rows, labels]
    runs : list of bool [rows, labels]
        The decisions of each run. Of a single one, the interval covers the choice of rows only.
    seed, resamples, binary
        As for `bootstrap_intervals`.

    Returns
    -------
    dict
        For each of `interval_names`, the lower and the upper limit.

    Notes
    -----
    Rows are resampled together for all runs, and the runs themselves too, as in `paired_differences`.
    """
    rng, rows = np.random.default_rng(seed), true.shape[0]
    true, decisions, counts = distinct_rows(true, runs)
    found: dict[str, list[np.ndarray]] = {name: [] for name in interval_names(binary)}
    for size in _blocks(resamples, true):
        draws = rng.multinomial(rows, counts / rows, size=size)
        means = _mean_of_drawn([resampled(draws, true, one) for one in decisions], rng)
        for name, values in found.items():
            values.append(means[name])
    return {n: [float(v) for v in np.percentile(np.concatenate(values), [2.5, 97.5])] for n, values in found.items()}


def resampled(draws: np.ndarray, true: Marks, predicted: Marks) -> dict[str, np.ndarray]:
    """The metrics of each bootstrap sample.

    Parameters
    ----------
    draws : int [resamples, rows]
        How many times a sample contains each row.
    true, predicted : bool [rows, labels]

    Returns
    -------
    dict of float64 [resamples]
        For each of `NAMES`, and for two labels "f1_positive", F1 of the second. F1 of 0/0 is 0; but in a sample that
        has no row of a label which the rows have, the mean over the labels is that of the others. As 0, the many rare
        labels of a large set would move the whole distribution below the value itself.

    Examples
    --------
    >>> true = np.array([[True], [True], [False]])
    >>> predicted = np.array([[True], [False], [False]])
    >>> resampled(np.array([[1, 1, 1], [2, 0, 1]]), true, predicted)["accuracy"].round(2)
    array([0.67, 1.  ])
    """
    weights = draws.astype(np.float64)
    if sparse.issparse(true):
        return _resampled_sparse(weights, true, predicted)
    tp = weights @ (true & predicted)
    fn, fp = weights @ (true & ~predicted), weights @ (~true & predicted)

    def f1(tp: np.ndarray, errors: np.ndarray) -> np.ndarray:
        return 2 * tp / np.maximum(2 * tp + errors, 1e-12)

    correct = weights @ (true == predicted).all(axis=1)
    each = f1(tp, fn + fp)
    drawn = (tp + fn + fp > 0).sum(axis=1)
    share_with_rows = (true | predicted).any(axis=0).mean()
    return ({"f1_positive": each[:, 1]} if each.shape[1] == 2 else {}) | {
        "f1_micro": f1(tp.sum(1), (fn + fp).sum(1)),
        "f1_macro": each.sum(1) / np.maximum(drawn, 1) * share_with_rows,
        "accuracy": correct / weights.sum(1),
    }


def _resampled_sparse(weights: np.ndarray, true: sparse.csr_matrix, predicted: sparse.csr_matrix) -> dict[str, Any]:
    """As `resampled`, from sparse marks: an array of samples times labels is made, but none of rows times labels."""
    # Only the labels that a row has or is given count.
    used = np.union1d(true.indices, predicted.indices)
    labels = true.shape[1]
    true, predicted = (m.astype(np.float64)[:, used] for m in (true, predicted))
    hits = true.multiply(predicted).tocsr()
    both, either = weights @ hits, weights @ (true + predicted)
    right = (labels_per_row(hits) == labels_per_row(true)) & (labels_per_row(hits) == labels_per_row(predicted))
    each = 2 * both / np.maximum(either, 1e-12)
    return {
        "f1_micro": 2 * both.sum(1) / np.maximum(either.sum(1), 1e-12),
        "f1_macro": each.sum(1) / np.maximum((either > 0).sum(axis=1), 1) * (len(used) / labels),
        "accuracy": weights @ right / weights.sum(1),
    }


def distinct_rows(true: Marks, decisions: list[Marks]) -> tuple[Marks, list[Marks], np.ndarray]:
    """Rows with the same labels and the same decisions by all sides, each once, and how many there are: int [rows].

    They are the same for every metric, so a bootstrap draws them together, which saves time and memory. Rows of sparse
    marks are hardly ever the same, so each is one of its own.
    """
    if sparse.issparse(true):
        return true, decisions, np.ones(true.shape[0], dtype=np.int64)
    cells = np.packbits(np.concatenate([true, *decisions], axis=1), axis=1)
    _, kept, counts = np.unique(cells, axis=0, return_index=True, return_counts=True)
    return true[kept], [of_side[kept] for of_side in decisions], counts


def paired_differences(
    true: Marks, first: list[Marks], second: list[Marks], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, np.ndarray]:
    """Bootstrap distribution of the difference between two sides, second minus first.

    Parameters
    ----------
    true : bool [rows, labels]
    first, second : list of bool [rows, labels]
        The decisions of each run of a side. The metric of a side is the mean over its runs.
    seed : int
    resamples : int
        Number of bootstrap samples.

    Returns
    -------
    dict of float64 [resamples]
        For each metric of `resampled`.

    Notes
    -----
    All runs of a sample use the same resampled rows, so that the difficulty of the rows cancels out (Efron & Tibshirani
    1993, section 10.3; Berg-Kirkpatrick et al. 2012). The runs of each side are resampled too, so that the differences
    include the variance between seeds.
    """
    rng, rows = np.random.default_rng(seed), true.shape[0]
    true, decisions, counts = distinct_rows(true, [*first, *second])
    first, second = decisions[: len(first)], decisions[len(first) :]
    differences: dict[str, list[np.ndarray]] = {}
    for size in _blocks(resamples, true):
        draws = rng.multinomial(rows, counts / rows, size=size)
        sides = [_mean_of_drawn([resampled(draws, true, one) for one in runs], rng) for runs in (first, second)]
        for name in sides[0]:
            differences.setdefault(name, []).append(sides[1][name] - sides[0][name])
    return {name: np.concatenate(blocks) for name, blocks in differences.items()}


def _blocks(resamples: int, patterns: Marks) -> list[int]:
    """The sizes of blocks of samples, which limit memory.

    A sample needs a number per pattern of a row, and several per label.
    """
    needed = max(1, patterns.shape[0])
    if sparse.issparse(patterns):
        needed = 4 * max(patterns.shape)
    block = max(1, min(resamples, _BLOCK // needed))
    return [min(block, resamples - start) for start in range(0, resamples, block)]


def _mean_of_drawn(values: list[dict[str, np.ndarray]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The mean over runs that are drawn for each sample: float64 [samples] for each metric."""
    size = len(next(iter(values[0].values())))
    drawn = rng.integers(len(values), size=(size, len(values)))
    return {n: np.stack([v[n] for v in values])[drawn.T, np.arange(size)].mean(axis=0) for n in values[0]}
