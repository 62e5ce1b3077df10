"""Comparing runs: is one side better, worse, or is the difference noise?

The rows of both sides are resampled together. A difference counts if 95 % of the resamples agree on its sign, but never
between seeds of the same recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import NAMES, paired_differences, resampled
from llmcls.recipe.differences import same_but_for_seeds
from llmcls.results.finished_runs import labels_of, runs_in
from llmcls.results.predictions import read_predictions
from llmcls.results.run_folder import RunFolder


@dataclass
class Verdict:
    """The comparison in one metric.

    Attributes
    ----------
    metric : str
    first, second : float
        The mean over the runs of A and of B.
    low, high : float
        The 95 % interval of B - A.
    p : float
        Two-sided, for no difference.
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
    """Compare two run folders or folders of runs, and say the result in words."""
    sides = runs_in(first), runs_in(second)
    split = split or _common_split(*sides)
    recipes = [yaml.safe_load(run.recipe.read_text(encoding="utf-8")) for side in sides for run in side]
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
    A verdict on every metric of `NAMES`, and the number of rows.

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
    sides = decisions[: len(first)], decisions[len(first) :]
    differences = paired_differences(true, *sides, resamples=resamples)
    once = np.ones((1, len(true)), dtype=np.int64)
    verdicts = []
    means = [{n: float(np.mean([resampled(once, true, d)[n][0] for d in side])) for n in NAMES} for side in sides]
    for name in NAMES:
        low, high = np.percentile(differences[name], [2.5, 97.5])
        # The share of resamples on the other side of zero, never quite none (Davison & Hinkley 1997, equation 4.11).
        wrong = min((differences[name] <= 0).sum(), (differences[name] >= 0).sum())
        p = min(1.0, 2 * (wrong + 1) / (resamples + 1))
        word = "noise" if same or p > 0.05 or low <= 0 <= high else ("B is better" if low > 0 else "B is worse")
        verdicts.append(Verdict(name, means[0][name], means[1][name], float(low), float(high), float(p), word))
    return verdicts, len(true)


def _aligned(runs: list[RunFolder], split: str, labels: LabelSpace) -> tuple[np.ndarray, list[np.ndarray]]:
    """True labels, and the decisions of each run, bool [rows, labels], in the order of the first run's ids."""
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
            raise UserError(f"{run.path} has other true labels for the {split} rows than {runs[0].path}")
        decisions.append(predictions.predicted[order])
    return true, decisions


def _common_split(first: list[RunFolder], second: list[RunFolder]) -> str:
    for split in ("test", "validation"):
        if all(split in run.predicted_splits() for run in (*first, *second)):
            return split
    raise UserError("no split was predicted by all runs; name data.test_csv in both recipes")
