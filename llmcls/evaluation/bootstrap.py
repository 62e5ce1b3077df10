"""Uncertainty: bootstrap intervals of F1 and accuracy, for one set of decisions and for the difference of two."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
NAMES = ("f1_micro", "f1_macro", "accuracy")


def bootstrap_intervals(
    true: np.ndarray, predicted: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """95 % percentile intervals (Efron & Tibshirani 1993, chapter 13) of `NAMES`, resampling rows.

    Parameters
    ----------
    true, predicted: bool [rows, labels]

    Notes
    -----
    Rows with the same labels and decisions are the same to every metric, so the resampling draws how often each such
    pattern occurs (a multinomial), which costs patterns and not rows.
    """
    patterns, counts = np.unique(np.concatenate([true, predicted], axis=1), axis=0, return_counts=True)
    true, predicted = patterns[:, : true.shape[1]], patterns[:, true.shape[1] :]
    draws = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    values = resampled(draws, true, predicted)
    return {name: [float(v) for v in np.percentile(values[name], [2.5, 97.5])] for name in NAMES}


def resampled(draws: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of each resample.

    Parameters
    ----------
    draws: int [resamples, rows], how often a row is in it. true, predicted: bool [rows, labels].

    Returns
    -------
    Each of `NAMES` to float64 [resamples]; F1 of 0/0 is 0.
    """
    weights = draws.astype(np.float64)
    hit = weights @ (true & predicted)
    missed, extra = weights @ (true & ~predicted), weights @ (~true & predicted)

    def f1(hit: np.ndarray, wrong: np.ndarray) -> np.ndarray:
        return 2 * hit / np.maximum(2 * hit + wrong, 1e-12)

    exact = weights @ (true == predicted).all(axis=1)
    return {
        "f1_micro": f1(hit.sum(1), (missed + extra).sum(1)),
        "f1_macro": f1(hit, missed + extra).mean(1),
        "accuracy": exact / weights.sum(1),
    }


def paired_differences(
    true: np.ndarray, first: list[np.ndarray], second: list[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, np.ndarray]:
    """Resampled differences, second minus first, of the mean over each side's runs.

    Rows are resampled together for all runs, so that what is easy or hard for both cancels out (Efron & Tibshirani
    1993, section 10.3; Berg-Kirkpatrick et al. 2012); where a side has several runs, they are resampled too, so that
    the chance of the seeds counts.

    Parameters
    ----------
    true: bool [rows, labels]. first, second: decisions of each run, bool [rows, labels].

    Returns
    -------
    Each of `NAMES` to float64 [resamples]
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    # In blocks: a resample of many rows is a long vector.
    block = max(1, min(resamples, 20_000_000 // max(1, len(true))))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        draws = rng.multinomial(len(true), np.full(len(true), 1 / len(true)), size=size)
        sides = []
        for runs in (first, second):
            values = [resampled(draws, true, decisions) for decisions in runs]
            chosen = rng.integers(len(runs), size=(size, len(runs)))
            picked = {n: np.stack([v[n] for v in values])[chosen.T, np.arange(size)].mean(axis=0) for n in NAMES}
            sides.append(picked)
        for name in NAMES:
            found[name].append(sides[1][name] - sides[0][name])
    return {name: np.concatenate(parts) for name, parts in found.items()}
