"""Decision thresholds: stored with the run, and applied to probabilities. `llmcls.evaluation.tuning` finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.common.files import read_json, write_json
from llmcls.common.logit import logit
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace, add_ancestors, multi_hot


@dataclass
class Thresholds:
    """The minimum probability at which a text gets a label.

    Attributes
    ----------
    rule : str
        "fixed", "global", "per_class" or "joint".
    values : list of float
        One per label, in the order of the head's outputs. Above 1: never.
    at_least_one : bool
        Whether a text without labels gets the label closest to its threshold.
    metric : str, optional
        The metric that the thresholds were tuned for; None if they are fixed.
    reason : str, optional
        Why the rule "auto" took this rule, with the figures of its cross-validation.
    """

    rule: str
    values: list[float]
    at_least_one: bool = False
    metric: str | None = None
    reason: str | None = None

    def described(self) -> dict[str, Any]:
        """The entry "thresholds" of metrics.json: which rule decides, for which metric, and why."""
        return {"thresholds": {"rule": self.rule, "metric": self.metric, "reason": self.reason}}


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
    if labels.binary:
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
            "reason": thresholds.reason,
            "values": dict(zip(label_names, thresholds.values, strict=True)),
        },
    )


def load_thresholds(path: Path, label_names: list[str]) -> Thresholds:
    """Read the file of `save_thresholds`. The values are in the order of ``label_names``.

    Raises
    ------
    UserError
        If the file is missing, or does not hold a number for each label.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; restore it, or make it again with `llmcls thresholds`")
    saved = read_json(path)
    found = saved.get("values") if isinstance(saved, dict) else None
    if not isinstance(found, dict) or not isinstance(saved.get("rule"), str):
        raise UserError(f"{path} is damaged: it has no values; restore it, or make it again with `llmcls thresholds`")
    for name in label_names:
        value = found.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{path}: the threshold of {name!r} is {value!r}; it must be a number")
    values = [float(found[name]) for name in label_names]
    return Thresholds(
        saved["rule"], values, bool(saved.get("at_least_one", False)), saved.get("metric"), saved.get("reason")
    )
