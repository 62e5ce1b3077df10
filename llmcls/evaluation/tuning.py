"""Tuning decision thresholds on validation, for the metric that a recipe names.

The command `llmcls.thresholds` tunes the thresholds of a finished run again, without training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from llmcls.common.logit import logit, sigmoid
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.cuts import best_cut, binary_cut, cell_cuts, micro_cuts, row_cuts, row_value, shared_row_cut
from llmcls.evaluation.objective import Objective, average_of, measure, objective_of
from llmcls.evaluation.thresholds import Thresholds, apply_thresholds, fixed_thresholds
from llmcls.recipe.metric_names import default_metric
from llmcls.recipe.schema import TrainSection

# Parts of the validation rows in cross-validation: each is decided by thresholds of the others.
FOLDS = 5
# Rows that cross-validation uses at most: with more, its result hardly changes.
CROSS_VALIDATED_ROWS = 50_000


@dataclass
class Tuning:
    """How thresholds are tuned.

    Attributes
    ----------
    rule : str
        "auto", "per_class", "global", "joint" or "fixed"; see `tune_thresholds`.
    metric : str
        See `llmcls.recipe.objective.parse_objective`.
    shrinkage : float
        Number of positives at which the threshold of a label and the shared one have the same weight.
    at_least_one : bool
        See `Thresholds`.
    fixed : float
        The threshold of the rule "fixed".
    serves : str, optional
        The metric of choice, which the rules "auto" and "joint" serve. Default: that of the problem type.
    """

    rule: str = "auto"
    metric: str = "f1"
    shrinkage: float = 20.0
    at_least_one: bool = False
    fixed: float = 0.5
    serves: str | None = None

    @classmethod
    def of(cls, train: TrainSection) -> Tuning:
        """The settings of a recipe."""
        given = train.thresholds, train.threshold_metric, train.threshold_shrinkage, train.at_least_one_label
        return cls(*given, serves=train.metric_for_best_model)

    def plan(self, labels: LabelSpace) -> Plan:
        """What is searched: the rule that "auto" stands for (the others stand for themselves), and its objective."""
        average = average_of(self.serves or default_metric(labels.problem_type), labels.binary)
        if self.rule in ("per_class", "global"):
            average = "positive" if labels.binary else ("macro" if self.rule == "per_class" else "micro")
        objective = objective_of(average, self.metric)
        rule = self.rule
        if rule == "auto":
            separate = labels.binary or average in ("macro", "weighted") or objective.precision is not None
            rule = "per_class" if separate else "joint"
        return Plan(rule, objective, self.at_least_one)


@dataclass(frozen=True)
class Plan:
    """A search for thresholds: the rule ("global", "per_class" or "joint"), what is best, and as in `Tuning`."""

    rule: str
    objective: Objective
    at_least_one: bool


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes
    ----------
    plan : Plan
    own : float64 [labels]
        The best cut of each label, as logits.
    shared : float
        The best cut for all labels.
    positives : int64 [labels]
    """

    plan: Plan
    own: np.ndarray
    shared: float
    positives: np.ndarray

    def thresholds(self, shrinkage: float) -> Thresholds:
        """The thresholds, each the weighted mean of the label's own cut and the shared one."""
        weight = self.positives / np.maximum(self.positives + shrinkage, 1e-12)
        values = [probability_of(cut) for cut in weight * self.own + (1 - weight) * self.shared]
        rule = "global" if np.isinf(shrinkage) else self.plan.rule
        return Thresholds(rule, values, self.plan.at_least_one, self.plan.objective.name)


def tune_thresholds(probabilities: np.ndarray, true: np.ndarray, labels: LabelSpace, tuning: Tuning) -> Thresholds:
    """The thresholds with the best metric on scored rows.

    Parameters
    ----------
    probabilities : float [rows, labels]
    true : bool [rows, labels]
    labels : LabelSpace
    tuning : Tuning

    Returns
    -------
    Thresholds

    Notes
    -----
    The rules:

    - "per_class": the best F_beta of each label. The best threshold t of a label and the best threshold g over all
      cells are combined as logit^-1((n logit(t) + k logit(g)) / (n + k)), where n is the number of positives of the
      label and k the shrinkage. This reduces overfitting of labels with few positives.
    - "joint": one threshold per label, chosen together for the metric of choice, and combined in the same way with the
      best threshold that all labels share. If the metric averages over labels, this is "per_class".
    - "global": one threshold for all labels, with the best F_beta over all cells.
    - "auto": "joint" if the metric of choice counts cells or rows, "per_class" if it averages over labels. A
      cross-validation over the rows, by the metric of choice, may take another shrinkage, from none to one threshold
      for all, if that is better by more than a standard error (Breiman et al. 1984, section 3.4.3), and takes 0.5 if
      nothing is better than that.

    Single-label decisions do not use thresholds, so these stay at their fixed value.
    """
    if tuning.rule == "fixed" or not (labels.multi_label or labels.binary):
        return fixed_thresholds(len(labels.names), tuning.fixed, tuning.at_least_one)
    plan, marks = tuning.plan(labels), true.astype(bool)
    if tuning.rule != "auto" or plan.objective.precision is not None:
        return search(probabilities, marks, labels, plan).thresholds(tuning.shrinkage)
    return _chosen_by_validation(probabilities, marks, labels, tuning)


def _chosen_by_validation(
    probabilities: np.ndarray, marks: np.ndarray, labels: LabelSpace, tuning: Tuning
) -> Thresholds:
    """The rule "auto": thresholds with the shrinkage that cross-validation prefers, or 0.5."""
    half = fixed_thresholds(len(labels.names), at_least_one=tuning.at_least_one)
    if len(marks) < 2:
        return replace(half, reason="a single validation row is not enough to tune thresholds")
    plan, k = tuning.plan(labels), tuning.shrinkage
    # From the cut of each label alone to the shared cut; a binary task has one cut only.
    candidates = [k, 0.0, k / 4, 4 * k, np.inf] if labels.multi_label else [k]
    rows = sampled_rows(len(marks))
    some, truth = probabilities[rows], marks[rows]
    decisions = cross_validated(some, truth, labels, plan, candidates)
    values = [measure(truth, decided, plan.objective) for decided in decisions]
    at_half = measure(truth, apply_thresholds(some, half, labels), plan.objective)
    best = int(np.argmax(values))
    if values[0] > at_half and not _clearly_better(truth, decisions[best], decisions[0], plan.objective):
        best = 0
    compared = f"{plan.objective.name} {values[best]:.4f} in {folds_of(len(rows)).max() + 1}-fold cross-validation"
    if not values[best] > at_half:
        return replace(half, reason=f"tuned thresholds are not better on validation: {compared}, {at_half:.4f} at 0.5")
    found = search(probabilities, marks, labels, plan).thresholds(candidates[best])
    detail = ""
    if labels.multi_label:
        together = candidates[best] == np.inf
        detail = " with one threshold for all" if together else f" with shrinkage {candidates[best]:g}"
    else:
        chosen = apply_thresholds(probabilities, found, labels)[:, 1].mean()
        detail = f" with {chosen:.0%} of the rows positive ({marks[:, 1].mean():.0%} are)"
    return replace(found, reason=f"{compared}{detail}, {at_half:.4f} at 0.5")


def cross_validated(
    probabilities: np.ndarray, marks: np.ndarray, labels: LabelSpace, plan: Plan, shrinkages: list[float]
) -> list[np.ndarray]:
    """Decisions for each row with thresholds that were tuned on other rows.

    Parameters
    ----------
    probabilities : float [rows, labels]
    marks : bool [rows, labels]
        At least two rows.
    labels : LabelSpace
    plan : Plan
    shrinkages : list of float

    Returns
    -------
    list of bool [rows, labels]
        For each shrinkage.
    """
    fold = folds_of(len(marks))
    decisions = [np.zeros(marks.shape, dtype=bool) for _ in shrinkages]
    for number in range(fold.max() + 1):
        held = fold == number
        found = search(probabilities[~held], marks[~held], labels, plan)
        for decided, shrinkage in zip(decisions, shrinkages, strict=True):
            decided[held] = apply_thresholds(probabilities[held], found.thresholds(shrinkage), labels)
    return decisions


def folds_of(rows: int) -> np.ndarray:
    """The part of each row in cross-validation, int64 [rows]: drawn at random, the same each time."""
    fold: np.ndarray = np.random.default_rng(0).permutation(rows) % min(FOLDS, rows)
    return fold


def _clearly_better(true: np.ndarray, first: np.ndarray, second: np.ndarray, objective: Objective) -> bool:
    """Whether the first decisions are better than the second by more than one standard error over the folds."""
    fold = folds_of(len(true))
    parts = [fold == number for number in range(fold.max() + 1)]
    gains = [measure(true[p], first[p], objective) - measure(true[p], second[p], objective) for p in parts]
    return bool(np.mean(gains) > np.std(gains, ddof=1) / len(gains) ** 0.5)


def sampled_rows(rows: int) -> np.ndarray:
    """The rows that are cross-validated: all, or `CROSS_VALIDATED_ROWS` drawn at random; int64."""
    if rows <= CROSS_VALIDATED_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, CROSS_VALIDATED_ROWS, replace=False))


def search(probabilities: np.ndarray, marks: np.ndarray, labels: LabelSpace, plan: Plan) -> Found:
    """The best cuts of a plan, whether or not they are better than 0.5.

    Parameters
    ----------
    probabilities : float [rows, labels]
    marks : bool [rows, labels]
    labels : LabelSpace
        Multi-label or binary.
    plan : Plan
    """
    objective, scores, positives = plan.objective, logit(probabilities), marks.sum(axis=0)
    if labels.binary:
        one = best_cut if objective.average == "positive" else binary_cut
        cut = one(scores[:, 1], marks[:, 1], objective)
        return Found(plan, np.full(2, cut), cut, positives)
    if plan.rule == "global":
        cut = best_cut(scores.ravel(), marks.ravel(), objective)
        return Found(plan, np.full(scores.shape[1], cut), cut, positives)
    return Found(plan, *_own_and_shared(scores, marks, objective), positives)


def _own_and_shared(scores: np.ndarray, marks: np.ndarray, objective: Objective) -> tuple[np.ndarray, float]:
    """The best cut of each label, float64 [labels], and the best cut for all."""
    cells = scores.ravel(), marks.ravel()
    if objective.average in ("samples", "exact"):
        return row_cuts(scores, marks, objective), shared_row_cut(scores, marks, row_value(objective))
    if objective.average == "cells":
        return cell_cuts(scores, marks), float(cell_cuts(cells[0][:, None], cells[1][:, None])[0])
    shared = best_cut(*cells, objective)
    if objective.average == "micro" and objective.precision is None:
        return micro_cuts(scores, marks, objective.beta), shared
    return np.array([best_cut(scores[:, i], marks[:, i], objective) for i in range(scores.shape[1])]), shared


def probability_of(cut: float) -> float:
    """A cut of logits as a probability: above 1 where even a probability of 1 is too low. 0 is never enough."""
    return float(np.nextafter(1.0, 2.0)) if cut > float(logit(1.0)) else float(sigmoid(cut))
