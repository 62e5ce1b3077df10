"""What decisions are tuned for, and how good decisions are by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmcls.recipe.objective import parse_objective

Average = Literal["micro", "macro", "weighted", "samples", "exact", "cells", "positive"]


@dataclass(frozen=True)
class Objective:
    """What decisions are tuned for.

    Attributes
    ----------
    average : str
        Over what F_beta is taken: "micro" all cells, "macro" each label, "weighted" each label by its positives,
        "samples" each row, "positive" the second class of a binary task. Two need no F_beta: "exact" is the share of
        rows without a mistake, "cells" the share of right cells.
    beta : float
    precision : float, optional
        If given, the objective is the highest recall at this precision instead of F_beta.
    """

    average: Average
    beta: float = 1.0
    precision: float | None = None

    @property
    def name(self) -> str:
        """The name of the metric, as in metrics.json where it is there.

        Examples
        --------
        >>> Objective("micro").name, Objective("macro", 0.5).name, Objective("exact").name
        ('f1_micro', 'f0.5_macro', 'accuracy')
        """
        if self.precision is not None:
            return f"recall@precision={self.precision:g}"
        return {"exact": "accuracy", "cells": "hamming_loss"}.get(self.average, f"f{self.beta:g}_{self.average}")


def objective_of(average: Average, threshold_metric: str) -> Objective:
    """The objective with the beta, or the precision, of ``train.threshold_metric``."""
    kind, parameter = parse_objective(threshold_metric)
    return Objective(average, parameter) if kind == "f" else Objective(average, precision=parameter)


def average_of(metric: str, binary: bool) -> Average:
    """Over what the decisions count that serve a metric.

    Parameters
    ----------
    metric : str
        A name of `llmcls.recipe.metric_names`.
    binary : bool
        Whether the task is binary. Its micro and samples averages are the accuracy, because each row has one class.

    Returns
    -------
    str
        See `Objective`. Metrics that need no decisions, such as the loss, are served by the F_beta of each label.

    Examples
    --------
    >>> average_of("f1_micro", False), average_of("average_precision_micro", False), average_of("loss", False)
    ('micro', 'micro', 'macro')
    >>> average_of("f1_micro", True), average_of("loss", True)
    ('exact', 'positive')
    """
    ending = metric.rpartition("_")[2]
    if metric == "accuracy" or (binary and (ending in ("micro", "samples") or metric == "hamming_loss")):
        return "exact"
    if metric == "hamming_loss":
        return "cells"
    if ending == "micro":
        return "micro"
    if ending == "samples":
        return "samples"
    if ending == "weighted":
        return "weighted"
    return "positive" if binary and ending != "macro" else "macro"


def measure(true: np.ndarray, predicted: np.ndarray, objective: Objective) -> float:
    """How good decisions are: higher is better, 1 is perfect.

    Parameters
    ----------
    true, predicted : bool [rows, labels]
    objective : Objective
        Its precision does not count: the value is always F_beta, or a share.

    Returns
    -------
    float
        F of 0/0 is 0, as in the metrics.

    Examples
    --------
    >>> true, predicted = np.array([[True, False], [True, True]]), np.array([[True, False], [True, False]])
    >>> measure(true, predicted, Objective("micro")), measure(true, predicted, Objective("exact"))
    (0.8, 0.5)
    """
    if objective.average == "exact":
        return float((true == predicted).all(axis=1).mean())
    if objective.average == "cells":
        return float((true == predicted).mean())
    hits = true & predicted
    if objective.average == "micro":
        return float(f_beta(hits.sum(), predicted.sum(), true.sum(), objective.beta))
    if objective.average == "samples":
        return float(f_beta(hits.sum(axis=1), predicted.sum(axis=1), true.sum(axis=1), objective.beta).mean())
    positives = true.sum(axis=0)
    each = f_beta(hits.sum(axis=0), predicted.sum(axis=0), positives, objective.beta)
    if objective.average == "positive":
        return float(each[1])
    if objective.average == "weighted":
        return float((each * positives).sum() / max(1, positives.sum()))
    return float(each.mean())


def f_beta(tp: np.ndarray, selected: np.ndarray, positives: np.ndarray, beta: float) -> np.ndarray:
    """F_beta from counts.

    Parameters
    ----------
    tp, selected, positives : int, any shape
        True positives, decisions for a label, and cells that have it.
    beta : float

    Returns
    -------
    float64, the same shape

    Notes
    -----
    F_beta = (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP) (van Rijsbergen 1979). FN = positives - TP and
    FP = selected - TP, so the denominator is b^2 positives + selected.
    """
    square = beta * beta
    value: np.ndarray = (1 + square) * tp / np.maximum(square * positives + selected, 1e-12)
    return value
