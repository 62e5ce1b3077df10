"""Thresholds: from probabilities to decisions, stored with the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmcls.files import read_json, write_json


@dataclass
class Thresholds:
    """The probability from which a label is said to hold.

    rule: how they were found; "fixed" means given. values: one per label, in the order of the head.
    """

    rule: str
    values: list[float]


def fixed_thresholds(labels: int, value: float = 0.5) -> Thresholds:
    """The same threshold for every label."""
    return Thresholds("fixed", [value] * labels)


def apply_thresholds(probabilities: np.ndarray, thresholds: Thresholds, problem_type: str) -> np.ndarray:
    """Decide.

    Parameters
    ----------
    probabilities: float32 [rows, labels]

    Returns
    -------
    bool [rows, labels]. Multi-label: every label at or above its threshold. Binary: the second class at or above
    its threshold, else the first. Single-label: the most probable class, whatever the thresholds.
    """
    values = np.asarray(thresholds.values)
    if problem_type == "multi_label_classification":
        return probabilities >= values
    if problem_type == "binary_classification":
        positive = probabilities[:, 1] >= values[1]
        return np.stack([~positive, positive], axis=1)
    return np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]


def save_thresholds(path: Path, thresholds: Thresholds, label_names: list[str]) -> None:
    """Write JSON a person can read and edit: values by label name."""
    write_json(path, {"rule": thresholds.rule, "values": dict(zip(label_names, thresholds.values, strict=True))})


def load_thresholds(path: Path, label_names: list[str]) -> Thresholds:
    """Read what `save_thresholds` wrote, in the order of ``label_names``."""
    saved = read_json(path)
    return Thresholds(saved["rule"], [float(saved["values"][name]) for name in label_names])
