"""Calibration: probabilities that mean what they say, fitted on validation and stored with the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.common.files import read_json, write_json
from llmcls.data.labels import LabelSpace, multi_hot
from llmcls.evaluation.metrics import to_probabilities


@dataclass
class Calibration:
    """How logits become probabilities.

    kind: None (sigmoid or softmax as they are), "temperature" or "isotonic".
    temperature: divides the logits. curves: for each label the points (x, y) of a rising step-free map of its
    uncalibrated probability.
    """

    kind: str | None = None
    temperature: float = 1.0
    curves: list[dict[str, list[float]]] = field(default_factory=list)


def fit_calibration(kind: str | None, logits: np.ndarray, values: np.ndarray, labels: LabelSpace) -> Calibration:
    """Fit on scored rows, which must not be the training rows.

    Parameters
    ----------
    logits: float32 [rows, labels]. values: labels as a `Split` holds them.

    Notes
    -----
    Temperature: the T that minimises cross-entropy of logits / T (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", section 4.2). Isotonic: Zadrozny & Elkan 2002, a curve for each label; over classes the curves'
    values are made to sum to one.
    """
    if kind is None:
        return Calibration()
    marks = multi_hot(values, len(labels.names))
    if kind == "temperature":
        from scipy.optimize import minimize_scalar

        wide = logits.astype(np.float64)

        def cross_entropy(log_t: float) -> float:
            x = wide / np.exp(log_t)
            if labels.multi_label:
                return float((np.logaddexp(0, x) - marks * x).mean())
            highest = x.max(axis=1, keepdims=True)
            normaliser = highest[:, 0] + np.log(np.exp(x - highest).sum(axis=1))
            return float((normaliser - x[marks]).mean())

        found = minimize_scalar(cross_entropy, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
        return Calibration(kind, float(np.exp(found.x)))
    from sklearn.isotonic import IsotonicRegression

    probabilities = to_probabilities(logits, labels.problem_type)
    curves = []
    for i in range(len(labels.names)):
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(probabilities[:, i], marks[:, i])
        curves.append({"x": fitted.X_thresholds_.tolist(), "y": fitted.y_thresholds_.tolist()})
    return Calibration(kind, curves=curves)


def calibrated(logits: np.ndarray, calibration: Calibration, labels: LabelSpace) -> np.ndarray:
    """float32 [rows, labels]: probabilities of ``logits`` [rows, labels]."""
    if calibration.kind != "isotonic":
        return to_probabilities(logits / np.float32(calibration.temperature), labels.problem_type)
    plain = to_probabilities(logits, labels.problem_type)
    mapped = np.stack([np.interp(plain[:, i], c["x"], c["y"]) for i, c in enumerate(calibration.curves)], axis=1)
    if not labels.multi_label:
        sums = mapped.sum(axis=1, keepdims=True)
        mapped = np.where(sums > 0, mapped / np.where(sums > 0, sums, 1), plain)
    return mapped.astype(np.float32)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write JSON."""
    write_json(path, {"kind": calibration.kind, "temperature": calibration.temperature, "curves": calibration.curves})


def load_calibration(path: Path) -> Calibration:
    """Read what `save_calibration` wrote; a run without the file is not calibrated."""
    saved: dict[str, Any] = read_json(path) if path.exists() else {}
    return Calibration(**saved)
