"""The rules for thresholds side by side: what each would reach on the splits of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.objective import Average, Objective, measure
from llmcls.evaluation.thresholds import apply_thresholds, fixed_thresholds
from llmcls.evaluation.tuning import Tuning, cross_validated, sampled_rows, search

# What is compared, over which average.
COMPARED: dict[str, Average] = {"f1_micro": "micro", "f1_macro": "macro", "f1_samples": "samples", "accuracy": "exact"}
COMPARED_BINARY: dict[str, Average] = {"f1_positive": "positive", "f1_macro": "macro", "accuracy": "exact"}


def compare_rules(
    scored: dict[str, tuple[np.ndarray, np.ndarray]], labels: LabelSpace, tuning: Tuning
) -> dict[str, dict[str, Any]]:
    """F1 and accuracy of each rule on each split.

    Parameters
    ----------
    scored : dict of (float [rows, labels], bool [rows, labels])
        Probabilities and true labels of each split.
    labels : LabelSpace
    tuning : Tuning
        Metric, shrinkage and metric of choice. The rule "joint" serves the metric of choice if that counts cells or
        rows, otherwise micro-F1.

    Returns
    -------
    dict
        For each rule, "metric", what it is tuned for, and the figures of each split. Those of "validation" are
        cross-validated: each row is decided by thresholds of other rows. Empty without at least two validation rows,
        and for single-label problems, which have no thresholds.
    """
    tuned_on = scored.get("validation")
    if tuned_on is None or len(tuned_on[1]) < 2 or not (labels.multi_label or labels.binary):
        return {}
    half = fixed_thresholds(len(labels.names), at_least_one=tuning.at_least_one)
    result: dict[str, dict[str, Any]] = {"fixed": {"metric": None}}
    for split, (probabilities, marks) in scored.items():
        rows = sampled_rows(len(marks)) if split == "validation" else np.arange(len(marks))
        result["fixed"][split] = figures(marks[rows], apply_thresholds(probabilities[rows], half, labels), labels)
    rules = ("global", "per_class", "joint") if labels.multi_label else ("per_class", "joint")
    for rule in rules:
        plan = replace(tuning, rule=rule).plan(labels)
        if rule == "joint" and plan.objective.average in ("macro", "weighted"):
            plan = replace(plan, objective=replace(plan.objective, average="micro"))
        found = search(*tuned_on, labels, plan).thresholds(tuning.shrinkage)
        result[rule] = {"metric": plan.objective.name}
        for split, (probabilities, marks) in scored.items():
            if split == "validation":
                rows = sampled_rows(len(marks))
                marks = marks[rows]
                predicted = cross_validated(probabilities[rows], marks, labels, plan, [tuning.shrinkage])[0]
            else:
                predicted = apply_thresholds(probabilities, found, labels)
            result[rule][split] = figures(marks, predicted, labels)
    return result


def figures(true: np.ndarray, predicted: np.ndarray, labels: LabelSpace) -> dict[str, float]:
    """The compared metrics of decisions, bool [rows, labels]."""
    compared = COMPARED_BINARY if labels.binary else COMPARED
    return {name: measure(true, predicted, Objective(average)) for name, average in compared.items()}
