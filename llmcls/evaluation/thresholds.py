"""Decision thresholds: tuned on the validation split, stored with the run, and applied to probabilities.

The command `llmcls.thresholds` tunes the thresholds of a finished run again, without training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmcls.common.files import read_json, write_json
from llmcls.common.logit import logit, sigmoid
from llmcls.data.labels import LabelSpace, add_ancestors, multi_hot
from llmcls.recipe.objective import parse_objective
from llmcls.recipe.schema import TrainSection


@dataclass
class Thresholds:
    """The minimum probability at which a text gets a label.

    Attributes
    ----------
    rule : str
        "fixed", "global" or "per_class".
    values : list of float
        One per label, in the order of the head's outputs.
    at_least_one : bool
        Whether a text without labels gets the label closest to its threshold.
    metric : str, optional
        The metric that the thresholds were tuned for; None if they are fixed.
    """

    rule: str
    values: list[float]
    at_least_one: bool = False
    metric: str | None = None


@dataclass
class Tuning:
    """How thresholds are tuned.

    Attributes
    ----------
    rule : str
        "per_class", "global" or "fixed".
    metric : str
        See `llmcls.recipe.objective.parse_objective`.
    shrinkage : float
        Number of positives at which the threshold of a label and the global one have the same weight.
    at_least_one : bool
        See `Thresholds`.
    fixed : float
        The threshold of the rule "fixed".
    """

    rule: str = "per_class"
    metric: str = "f1"
    shrinkage: float = 20.0
    at_least_one: bool = False
    fixed: float = 0.5

    @classmethod
    def of(cls, train: TrainSection) -> Tuning:
        """The settings of a recipe."""
        return cls(train.thresholds, train.threshold_metric, train.threshold_shrinkage, train.at_least_one_label)


def fixed_thresholds(labels: int, value: float = 0.5, at_least_one: bool = False) -> Thresholds:
    """The same threshold for every label.

    Parameters
    ----------
    labels : int
        Number of labels.
    value : float
    at_least_one : bool
        See `Thresholds`.
    """
    return Thresholds("fixed", [value] * labels, at_least_one)


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
    Each search is exact: it tries every cut between two scores. With the rule "per_class", the best threshold t of a
    label and the best threshold g over all cells are combined as logit^-1((n logit(t) + k logit(g)) / (n + k)), where n
    is the number of positives of the label and k the shrinkage. This reduces overfitting of labels with few positives.

    Single-label decisions do not use thresholds, so these stay at their fixed value.
    """
    count = len(labels.names)
    if tuning.rule == "fixed" or labels.problem_type == "single_label_classification":
        return fixed_thresholds(count, tuning.fixed, tuning.at_least_one)
    columns = range(count) if labels.multi_label else [1]
    scores, marks = logit(probabilities), true.astype(bool)
    shared = best_cut(scores[:, list(columns)].ravel(), marks[:, list(columns)].ravel(), tuning.metric)
    values = [shared] * count
    if tuning.rule == "per_class" and labels.multi_label:
        for i in columns:
            positives = int(marks[:, i].sum())
            best = best_cut(scores[:, i], marks[:, i], tuning.metric) if positives else shared
            weight = positives / (positives + tuning.shrinkage) if positives else 0.0
            values[i] = weight * best + (1 - weight) * shared
    return Thresholds(tuning.rule, [float(sigmoid(v)) for v in values], tuning.at_least_one, tuning.metric)


def best_cut(scores: np.ndarray, true: np.ndarray, metric: str) -> float:
    """The cut at which the decisions ``scores >= cut`` have the best metric.

    Parameters
    ----------
    scores : float64 [n]
    true : bool [n]
    metric : str
        ``f<beta>`` or ``recall@precision=<p>``. If no cut reaches the precision, the cut with the highest precision.

    Returns
    -------
    float
        Midway between two neighbouring scores. Above all scores if no element is true.

    Notes
    -----
    F_beta = (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP) (van Rijsbergen 1979), over all n + 1 cuts. The scores are
    sorted once.

    Examples
    --------
    >>> best_cut(np.array([0.25, 0.5, 0.75, 1.0]), np.array([False, False, True, True]), "f1")
    0.625
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(true[order])
    # Equal scores get the same decision, so cuts are possible only where the score changes.
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    selected, tp = last + 1, hits[last]
    kind, parameter = parse_objective(metric)
    if kind == "f":
        square = parameter * parameter
        # FN = positives - TP and FP = selected - TP, so the denominator is b^2 positives + selected.
        value = (1 + square) * tp / np.maximum(square * hits[-1] + selected, 1e-12)
    else:
        precision, recall = tp / selected, tp / max(1, hits[-1])
        reached = precision >= parameter
        value = np.where(reached, 1 + recall, precision)
    best = int(np.argmax(value))
    if hits[-1] == 0:
        # No element is true: select none.
        return float(ordered[0] + 1.0)
    upper = ordered[last[best]]
    lower = ordered[last[best] + 1] if last[best] + 1 < len(ordered) else upper - 1.0
    return float((upper + lower) / 2)


def apply_thresholds(probabilities: np.ndarray, thresholds: Thresholds, labels: LabelSpace) -> np.ndarray:
    """Decide which labels each row gets.

    Parameters
    ----------
    probabilities : float32 [rows, labels]
    thresholds : Thresholds
    labels : LabelSpace

    Returns
    -------
    bool [rows, labels]
        Multi-label: every label at or above its threshold, and its ancestors. Binary: the second class at or above its
        threshold, else the first class. Single-label: the most probable class, independent of the thresholds.

    Examples
    --------
    >>> labels = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")
    >>> apply_thresholds(np.array([[0.6, 0.4], [0.2, 0.3]]), Thresholds("per_class", [0.5, 0.4]), labels)
    array([[ True,  True],
           [False, False]])
    """
    values = np.asarray(thresholds.values)
    if labels.multi_label:
        predicted = probabilities >= values
        if thresholds.at_least_one and len(predicted):
            closest = (logit(probabilities) - logit(values)).argmax(axis=1)
            without_label = np.flatnonzero(~predicted.any(axis=1))
            predicted[without_label, closest[without_label]] = True
        return add_ancestors(predicted, labels) if labels.hierarchy else predicted
    if labels.problem_type == "binary_classification":
        positive = probabilities[:, 1] >= values[1]
        return np.stack([~positive, positive], axis=1)
    return multi_hot(probabilities.argmax(axis=1), probabilities.shape[1])


def mean_thresholds(each: Sequence[Thresholds]) -> Thresholds:
    """The thresholds for the mean of the probabilities of several runs; of one run, its own.

    Examples
    --------
    >>> mean_thresholds([Thresholds("global", [0.2]), Thresholds("global", [0.4], at_least_one=True)])
    Thresholds(rule='mean', values=[0.30000000000000004], at_least_one=True, metric=None)
    """
    if len(each) == 1:
        return each[0]
    values = np.mean([thresholds.values for thresholds in each], axis=0).tolist()
    return Thresholds("mean", values, any(thresholds.at_least_one for thresholds in each))


def save_thresholds(path: Path, thresholds: Thresholds, label_names: list[str]) -> None:
    """Write thresholds by label name as JSON that can be edited by hand."""
    write_json(
        path,
        {
            "rule": thresholds.rule,
            "metric": thresholds.metric,
            "at_least_one": thresholds.at_least_one,
            "values": dict(zip(label_names, thresholds.values, strict=True)),
        },
    )


def load_thresholds(path: Path, label_names: list[str]) -> Thresholds:
    """Read the file of `save_thresholds`. The values are in the order of ``label_names``."""
    saved = read_json(path)
    values = [float(saved["values"][name]) for name in label_names]
    return Thresholds(saved["rule"], values, saved.get("at_least_one", False), saved.get("metric"))
