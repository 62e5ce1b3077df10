"""Compare runs: is one side better, or is the difference noise?

The rows of both sides are resampled together. A difference counts if 95 % of the resamples agree on its sign. Between
seeds of the same recipe, no difference counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import interval_names, paired_differences, resampled
from llmcls.recipe.differences import same_but_for_seeds
from llmcls.results.finished_runs import labels_of, runs_in
from llmcls.results.predictions import read_predictions
from llmcls.results.run_folder import RunFolder, saved_recipe


@dataclass
class Verdict:
    """The comparison of two sides in one metric.

    Attributes
    ----------
    metric : str
    first, second : float
        Mean over the runs of A and of B.
    low, high : float
        Bounds of the 95 % interval of B - A.
    p : float
        Two-sided p-value of "no difference".
    word : str
        "noise", "B is better" or "B is worse".
    """

    metric: str
    first: float
    second: float
    low: float
    high: float
    p: float
    word: str


def comparison_lines(first: Path, second: Path, split: str | None, resamples: int) -> list[str]:
    """Compare two run folders, or folders of runs, and describe the result.

    Parameters
    ----------
    first, second : Path
        A and B. For a folder of runs, all its finished runs count.
    split : str, optional
        "validation" or "test". Default: test if all runs predicted it, otherwise validation.
    resamples : int
        Bootstrap resamples.

    Returns
    -------
    list of str
        The number of rows and runs, one line per metric, and a remark on seeds if it applies.

    Raises
    ------
    UserError
        If a folder has no finished run, no split was predicted by all runs, or labels or rows differ.
    """
    sides = runs_in(first), runs_in(second)
    split = split or _common_split(*sides)
    recipes = [saved_recipe(run) for side in sides for run in side]
    same = same_but_for_seeds(recipes)
    verdicts, rows = compare(*sides, split, resamples, same)
    lines = [f"{split}, {rows} rows in both; A: {first} ({len(sides[0])} run(s)), B: {second} ({len(sides[1])} run(s))"]
    for v in verdicts:
        lines.append(
            f"{v.metric:9}  A {v.first:.4f}  B {v.second:.4f}  B - A {v.second - v.first:+.4f} "
            f"[{v.low:+.4f}, {v.high:+.4f}]  p {v.p:.3f}  {v.word}"
        )
    if same:
        lines.append("same recipe on both sides: the difference is seed variance")
    elif min(map(len, sides)) == 1:
        lines.append("one side has a single seed: the interval covers the choice of rows, not the choice of seed")
    return lines


def compare(
    first: list[RunFolder], second: list[RunFolder], split: str, resamples: int, same: bool
) -> tuple[list[Verdict], int]:
    """Compare two lists of runs.

    Parameters
    ----------
    first, second : list of RunFolder
        The runs of A and of B.
    split : str
        "validation" or "test".
    resamples : int
        Bootstrap resamples.
    same : bool
        Whether all runs have the same recipe; then every difference is noise.

    Returns
    -------
    verdicts : list of Verdict
        One for each metric of `interval_names`.
    rows : int
        The number of rows.

    Raises
    ------
    UserError
        If labels or rows differ.
    """
    labels = labels_of(first[0])
    for run in (*first, *second):
        if labels_of(run).names != labels.names:
            raise UserError(f"{run.path} has other labels than {first[0].path}; compare runs with the same labels")
    true, decisions = _aligned([*first, *second], split, labels)
    verdicts = judge(true, decisions[: len(first)], decisions[len(first) :], resamples, labels.binary)
    return [replace(v, word="noise") if same else v for v in verdicts], len(true)


def judge(
    true: np.ndarray, first: list[np.ndarray], second: list[np.ndarray], resamples: int, binary: bool = False
) -> list[Verdict]:
    """Compare the decisions of two sides on the same rows.

    Parameters
    ----------
    true : bool [rows, labels]
    first, second : list of bool [rows, labels]
        The decisions of each run of A and of B.
    resamples : int
        Bootstrap resamples.
    binary : bool
        Whether the second label is the positive class of a binary task.

    Returns
    -------
    list of Verdict
        One for each metric of `interval_names`.

    Notes
    -----
    The p-value is twice the share of resamples on the other side of zero, which is never exactly 0 (Davison & Hinkley
    1997, equation 4.11).
    """
    sides, names = (first, second), interval_names(binary)
    differences = paired_differences(true, *sides, resamples=resamples)
    once = np.ones((1, len(true)), dtype=np.int64)
    verdicts = []
    means = [{n: float(np.mean([resampled(once, true, d)[n][0] for d in side])) for n in names} for side in sides]
    for name in names:
        low, high = np.percentile(differences[name], [2.5, 97.5])
        other_sign = min((differences[name] <= 0).sum(), (differences[name] >= 0).sum())
        p = min(1.0, 2 * (other_sign + 1) / (resamples + 1))
        word = "noise" if p > 0.05 or low <= 0 <= high else ("B is better" if low > 0 else "B is worse")
        verdicts.append(Verdict(name, means[0][name], means[1][name], float(low), float(high), float(p), word))
    return verdicts


def _aligned(runs: list[RunFolder], split: str, labels: LabelSpace) -> tuple[np.ndarray, list[np.ndarray]]:
    """The true labels and the decisions of each run, bool [rows, labels], in the row order of the first run."""
    found = [read_predictions(run.predictions(split), labels) for run in runs]
    ids, true = found[0].ids, found[0].true_marks(labels)
    decisions = []
    for run, predictions in zip(runs, found, strict=True):
        row = {row_id: i for i, row_id in enumerate(predictions.ids)}
        if row.keys() != set(ids):
            raise UserError(
                f"{run.path} predicted other {split} rows than {runs[0].path}; compare runs on the same rows"
            )
        order = [row[i] for i in ids]
        marks = predictions.true_marks(labels)[order]
        if not np.array_equal(marks, true):
            raise UserError(
                f"{run.path} has other true labels for the {split} rows than {runs[0].path}; "
                "compare runs with the same true labels"
            )
        decisions.append(predictions.predicted[order])
    return true, decisions


def _common_split(first: list[RunFolder], second: list[RunFolder]) -> str:
    """The split that all runs predicted: test if possible, otherwise validation."""
    for split in ("test", "validation"):
        if all(split in run.predicted_splits() for run in (*first, *second)):
            return split
    raise UserError("no split was predicted by all runs; set data.test_csv in both recipes and train them again")
