"""Thresholds: from probabilities to decisions; tuned on validation, stored with the run.

`llmcls.thresholds`, the command, tunes a finished run again without training.
"""

from __future__ import annotations

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
    """The probability from which a label is said to hold.

    rule: "fixed", "global" or "per_class". values: one per label, in the order of the head.
    at_least_one: a text without any label gets the one nearest to its threshold.
    metric: what they were tuned for; None for fixed ones.
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
        Number of positives at which a label's own threshold counts as much as the global one.
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
        """What a recipe asks for."""
        return cls(train.thresholds, train.threshold_metric, train.threshold_shrinkage, train.at_least_one_label)


def fixed_thresholds(labels: int, value: float = 0.5, at_least_one: bool = False) -> Thresholds:
    """The same threshold for every label."""
    return Thresholds("fixed", [value] * labels, at_least_one)


def tune_thresholds(probabilities: np.ndarray, true: np.ndarray, labels: LabelSpace, tuning: Tuning) -> Thresholds:
    """Thresholds that are best on scored rows for the metric.

    Parameters
    ----------
    probabilities: float [rows, labels]. true: bool [rows, labels].

    Notes
    -----
    Each search is exact: every cut between two scores is tried. A label's own threshold t and the global one g, the
    best over all cells, become logit^-1((n logit(t) + k logit(g)) / (n + k)) with n its positives and k the
    shrinkage, so that a label with few positives does not follow their accidents.

    Single-label decisions take the most probable class: their thresholds stay at 0.5.
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
            own = best_cut(scores[:, i], marks[:, i], tuning.metric) if positives else shared
            weight = positives / (positives + tuning.shrinkage) if positives else 0.0
            values[i] = weight * own + (1 - weight) * shared
    return Thresholds(tuning.rule, [float(sigmoid(v)) for v in values], tuning.at_least_one, tuning.metric)


def best_cut(scores: np.ndarray, true: np.ndarray, metric: str) -> float:
    """The cut, midway between two scores, at which ``scores >= cut`` is best; found by sorting once.

    Parameters
    ----------
    scores: float64 [n]. true: bool [n]. metric: ``f<beta>``, or ``recall@precision=<p>``; where no cut reaches that
        precision, the one of the highest precision.

    Notes
    -----
    F_beta = (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP) (van Rijsbergen 1979), over all n + 1 cuts.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(true[order])
    # Only where the score changes can a cut lie.
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    chosen, found = last + 1, hits[last]
    kind, number = parse_objective(metric)
    if kind == "f":
        square = number * number
        # FN = positives - TP and FP = chosen - TP, so the denominator is b^2 positives + chosen.
        value = (1 + square) * found / np.maximum(square * hits[-1] + chosen, 1e-12)
    else:
        precision, recall = found / chosen, found / max(1, hits[-1])
        reached = precision >= number
        value = np.where(reached, 1 + recall, precision)
    best = int(np.argmax(value))
    if hits[-1] == 0:
        # Nothing to find: say nothing.
        return float(ordered[0] + 1.0)
    upper = ordered[last[best]]
    lower = ordered[last[best] + 1] if last[best] + 1 < len(ordered) else upper - 1.0
    return float((upper + lower) / 2)


def apply_thresholds(probabilities: np.ndarray, thresholds: Thresholds, labels: LabelSpace) -> np.ndarray:
    """Decide.

    Parameters
    ----------
    probabilities: float32 [rows, labels]

    Returns
    -------
    bool [rows, labels]. Multi-label: every label at or above its threshold, and what it implies. Binary: the second
    class at or above its threshold, else the first. Single-label: the most probable class, whatever the thresholds.
    """
    values = np.asarray(thresholds.values)
    if labels.multi_label:
        chosen = probabilities >= values
        if thresholds.at_least_one and len(chosen):
            nearest = (logit(probabilities) - logit(values)).argmax(axis=1)
            none = np.flatnonzero(~chosen.any(axis=1))
            chosen[none, nearest[none]] = True
        return add_ancestors(chosen, labels) if labels.hierarchy else chosen
    if labels.problem_type == "binary_classification":
        positive = probabilities[:, 1] >= values[1]
        return np.stack([~positive, positive], axis=1)
    return multi_hot(probabilities.argmax(axis=1), probabilities.shape[1])


def save_thresholds(path: Path, thresholds: Thresholds, label_names: list[str]) -> None:
    """Write JSON a person can read and edit: values by label name."""
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
    """Read what `save_thresholds` wrote, in the order of ``label_names``."""
    saved = read_json(path)
    values = [float(saved["values"][name]) for name in label_names]
    return Thresholds(saved["rule"], values, saved.get("at_least_one", False), saved.get("metric"))
