"""Thresholds: from probabilities to decisions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmcls.files import read_json, write_json


@dataclass
class Thresholds:
    """values: one per label."""

    rule: str
    values: list[float]
    metric: str | None
    tuned_on: str | None
    at_least_one: bool


def save_thresholds(path: Path, thresholds: Thresholds, label_names: list[str]) -> None:
    """Write JSON keyed by label name."""
    write_json(path, {**thresholds.__dict__, "values": dict(zip(label_names, thresholds.values, strict=True))})


def load_thresholds(path: Path) -> Thresholds:
    """Read what `save_thresholds` wrote."""
    raw = read_json(path)
    return Thresholds(**{**raw, "values": list(raw["values"].values())})


def apply_thresholds(probabilities: np.ndarray, thresholds: Thresholds, problem_type: str) -> np.ndarray:
    """bool [n, labels]"""
    values = np.asarray(thresholds.values)
    if problem_type == "multi_label_classification":
        return probabilities >= values
    if problem_type == "binary_classification":
        positive = probabilities[:, 1] >= values[1]
        return np.stack([~positive, positive], 1)
    return np.arange(probabilities.shape[1]) == probabilities.argmax(1)[:, None]
