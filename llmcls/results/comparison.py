"""Compare runs: is one side better, or is the difference noise?

The rows of both sides are resampled together. A difference counts if 95 % of the resamples agree on its sign. Between
seeds of the same recipe, no difference counts. If the sides decide by different rules for thresholds, only their
difference by the same rule is one of the models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import Marks, interval_names, paired_differences, resampled
from llmcls.recipe.differences import same_but_for_seeds
from llmcls.results.finished_runs import labels_of, runs_in
from llmcls.results.predictions import Predictions, read_predictions
from llmcls.results.run_folder import RunFolder, saved_recipe
from llmcls.results.same_rule import decide_by, rule_of, same_rule


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


@dataclass(frozen=True)
class Comparison:
    """Two sides, compared.

    Attributes
    ----------
    first, second : list of RunFolder
        The runs of A and of B.
    split : str
    rows : int
    labels : LabelSpace
    rules : tuple of str
        How each side decides, in words.
    verdicts : list of Verdict
        With the decisions of the runs.
    rule : str, optional
        A rule by which both sides were decided again, if they decide by different ones.
    by_rule : list of Verdict
        With the decisions by that rule; empty without it.
    same : bool
        Whether all runs have the same recipe.
    label_f1 : list of (float, float)
        F1 of each label, mean over the runs of A and of B, by the same rule.
    """

    first: list[RunFolder]
    second: list[RunFolder]
    split: str
    rows: int
    labels: LabelSpace
    rules: tuple[str, str]
    verdicts: list[Verdict]
    rule: str | None
    by_rule: list[Verdict]
    same: bool
    label_f1: list[tuple[float, float]]

    @property
    def of_models(self) -> list[Verdict]:
        """The verdicts on the models: by the same rule."""
        return self.by_rule or self.verdicts

    def remarks(self) -> list[str]:
        """What must be known to read the verdicts."""
        found = []
        if self.rule:
            tuned = "" if self.rule == "0.5" else ", tuned on the validation rows of each run"
            found.append(
                f"A and B decide by different rules ({self.rules[0]} and {self.rules[1]}), so they are also compared "
                f"by the same one: {self.rule}{tuned}"
            )
        if self.same:
            found.append("same recipe on both sides: the difference is seed variance")
        elif min(len(self.first), len(self.second)) == 1:
            found.append("one side has a single seed: the interval covers the choice of rows, not the choice of seed")
        return found


def comparison_lines(first: Path, second: Path, found: Comparison) -> list[str]:
    """Describe a comparison.

    Parameters
    ----------
    first, second : Path
        The folders that were compared.
    found : Comparison

    Returns
    -------
    list of str
        The number of rows and runs, the rules of both sides, one line per metric, and remarks.
    """
    sides = len(found.first), len(found.second)
    lines = [
        f"{found.split}, {found.rows} rows in both; A: {first} ({sides[0]} run(s)), B: {second} ({sides[1]} run(s))"
    ]
    if found.labels.multi_label or found.labels.binary:
        lines.append(f"thresholds: A {found.rules[0]}; B {found.rules[1]}")
    if found.rule:
        lines.append("models and thresholds together, which says nothing about the models:")
    lines += [_line(v, "rules differ" if found.rule else v.word) for v in found.verdicts]
    if found.rule:
        lines.append(f"the models alone, both with thresholds {found.rule}:")
        lines += [_line(v, v.word) for v in found.by_rule]
    return lines + found.remarks()


def _line(v: Verdict, word: str) -> str:
    """A metric of both sides, the difference with its interval, and what it is."""
    return (
        f"{v.metric:9}  A {v.first:.4f}  B {v.second:.4f}  B - A {v.second - v.first:+.4f} "
        f"[{v.low:+.4f}, {v.high:+.4f}]  p {v.p:.3f}  {word}"
    )


def compare_folders(first: Path, second: Path, split: str | None, resamples: int) -> Comparison:
    """Compare two run folders, or folders of runs.

    Parameters
    ----------
    first, second : Path
        A and B. For a folder of runs, all its finished runs count.
    split : str, optional
        "validation" or "test". Default: test if all runs predicted it, otherwise validation.
    resamples : int
        Bootstrap resamples.

    Raises
    ------
    UserError
        If a folder has no finished run, no split was predicted by all runs, or labels or rows differ.
    """
    sides = runs_in(first), runs_in(second)
    split = split or _common_split(*sides)
    same = same_but_for_seeds([saved_recipe(run) for side in sides for run in side])
    return compare(*sides, split, resamples, same)


def compare(first: list[RunFolder], second: list[RunFolder], split: str, resamples: int, same: bool) -> Comparison:
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

    Raises
    ------
    UserError
        If labels or rows differ.
    """
    labels, runs = labels_of(first[0]), [*first, *second]
    for run in runs:
        if labels_of(run).names != labels.names:
            raise UserError(f"{run.path} has other labels than {first[0].path}; compare runs with the same labels")
    true, found = _aligned(runs, split, labels)
    rules = rule_of(first, labels), rule_of(second, labels)

    def verdicts(decisions: list[Marks]) -> list[Verdict]:
        judged = judge(true, decisions[: len(first)], decisions[len(first) :], resamples, labels.binary)
        return [replace(v, word="noise") if same else v for v in judged]

    decisions, rule, by_rule = [one.predicted for one in found], None, []
    own = verdicts(decisions)
    if rules[0] != rules[1]:
        rule, tuning = same_rule(runs, labels)
        decisions = [decide_by(run, one, labels, tuning) for run, one in zip(runs, found, strict=True)]
        by_rule = verdicts(decisions)
    each = [[_label_f1(true, d) for d in part] for part in (decisions[: len(first)], decisions[len(first) :])]
    means = [np.mean(side, axis=0).tolist() for side in each]
    label_f1 = list(zip(*means, strict=True))
    return Comparison(first, second, split, true.shape[0], labels, rules, own, rule, by_rule, same, label_f1)


def _label_f1(true: Any, predicted: Any) -> np.ndarray:
    """F1 of each label, float64 [labels]; 0 of 0/0."""
    both = true.multiply(predicted) if sparse.issparse(true) else true & predicted
    hits, given, selected = (np.asarray(marks.sum(axis=0), dtype=np.int64).ravel() for marks in (both, true, predicted))
    return 2 * hits / np.maximum(given + selected, 1)


def judge(true: Marks, first: list[Marks], second: list[Marks], resamples: int, binary: bool = False) -> list[Verdict]:
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
    once = np.ones((1, true.shape[0]), dtype=np.int64)
    verdicts = []
    means = [{n: float(np.mean([resampled(once, true, d)[n][0] for d in side])) for n in names} for side in sides]
    for name in names:
        low, high = np.percentile(differences[name], [2.5, 97.5])
        other_sign = min((differences[name] <= 0).sum(), (differences[name] >= 0).sum())
        p = min(1.0, 2 * (other_sign + 1) / (resamples + 1))
        word = "noise" if p > 0.05 or low <= 0 <= high else ("B is better" if low > 0 else "B is worse")
        verdicts.append(Verdict(name, means[0][name], means[1][name], float(low), float(high), float(p), word))
    return verdicts


def _aligned(runs: list[RunFolder], split: str, labels: LabelSpace) -> tuple[Marks, list[Predictions]]:
    """The true labels, bool [rows, labels], and the predictions of each run, in the row order of the first run."""
    found = [read_predictions(run.predictions(split), labels) for run in runs]
    ids, true = found[0].ids, found[0].true_marks(labels)
    aligned = []
    for run, predictions in zip(runs, found, strict=True):
        row = {row_id: i for i, row_id in enumerate(predictions.ids)}
        if row.keys() != set(ids):
            raise UserError(
                f"{run.path} predicted other {split} rows than {runs[0].path}; compare runs on the same rows"
            )
        order = [row[i] for i in ids]
        marks = predictions.true_marks(labels)[order]
        if (marks != true).sum():
            raise UserError(
                f"{run.path} has other true labels for the {split} rows than {runs[0].path}; "
                "compare runs with the same true labels"
            )
        probabilities, predicted = predictions.probabilities[order], predictions.predicted[order]
        aligned.append(Predictions(ids, probabilities, predicted, found[0].true))
    return true, aligned


def _common_split(first: list[RunFolder], second: list[RunFolder]) -> str:
    """The split that all runs predicted: test if possible, otherwise validation."""
    for split in ("test", "validation"):
        if all(split in run.predicted_splits() for run in (*first, *second)):
            return split
    raise UserError("no split was predicted by all runs; set data.test_csv in both recipes and train them again")
