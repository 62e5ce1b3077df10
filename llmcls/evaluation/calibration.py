"""Calibration: maps logits to probabilities that match observed frequencies. Fitted on the validation split."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmcls.common.files import read_json, write_json
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace, multi_hot
from llmcls.evaluation.metrics import to_probabilities


@dataclass
class Calibration:
    """How logits become probabilities.

    Attributes
    ----------
    kind : str, optional
        "temperature" or "isotonic"; None for the plain sigmoid or softmax.
    temperature : float
        Divides the logits.
    curves : list of dict
        For "isotonic": the points "x" and "y" of each label's piecewise linear, non-decreasing map from uncalibrated
        to calibrated probability.
    """

    kind: str | None = None
    temperature: float = 1.0
    curves: list[dict[str, list[float]]] = field(default_factory=list)


def fit_calibration(kind: str | None, logits: np.ndarray, values: np.ndarray, labels: LabelSpace) -> Calibration:
    """Fit a calibration on scored rows, which must not be training rows.

    Parameters
    ----------
    kind : str or None
        See `Calibration`.
    logits : float32 [rows, labels]
    values : float32 [rows, labels] or int64 [rows]
        Label values as in a `Split`.
    labels : LabelSpace

    Returns
    -------
    Calibration

    Notes
    -----
    Temperature: the T that minimises cross-entropy of logits / T (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", section 4.2). Isotonic: Zadrozny & Elkan 2002, one curve per label; for single-label problems, the
    results are normalised to sum to one.
    """
    if kind is None:
        return Calibration()
    marks = multi_hot(values, len(labels.names))
    if kind == "temperature":
        from scipy.optimize import minimize_scalar

        logits64 = logits.astype(np.float64)

        def cross_entropy(log_t: float) -> float:
            x = logits64 / np.exp(log_t)
            if labels.multi_label:
                return float((np.logaddexp(0, x) - marks * x).mean())
            highest = x.max(axis=1, keepdims=True)
            log_sum = highest[:, 0] + np.log(np.exp(x - highest).sum(axis=1))
            return float((log_sum - x[marks]).mean())

        minimum = minimize_scalar(cross_entropy, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
        return Calibration(kind, float(np.exp(minimum.x)))
    from sklearn.isotonic import IsotonicRegression

    probabilities = to_probabilities(logits, labels.problem_type)
    curves = []
    for i in range(len(labels.names)):
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(probabilities[:, i], marks[:, i])
        curves.append({"x": fitted.X_thresholds_.tolist(), "y": fitted.y_thresholds_.tolist()})
    return Calibration(kind, curves=curves)


def calibrated(logits: np.ndarray, calibration: Calibration, labels: LabelSpace) -> np.ndarray:
    """Calibrated probabilities.

    Parameters
    ----------
    logits : float32 [rows, labels]
    calibration : Calibration
    labels : LabelSpace

    Returns
    -------
    float32 [rows, labels]

    Examples
    --------
    >>> labels = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")
    >>> calibrated(np.array([[0.0, 2.0]], dtype=np.float32), Calibration("temperature", 2.0), labels).round(2)
    array([[0.5 , 0.73]], dtype=float32)
    """
    if calibration.kind != "isotonic":
        return to_probabilities(logits / np.float32(calibration.temperature), labels.problem_type)
    plain = to_probabilities(logits, labels.problem_type)
    mapped = np.stack([np.interp(plain[:, i], c["x"], c["y"]) for i, c in enumerate(calibration.curves)], axis=1)
    if not labels.multi_label:
        sums = mapped.sum(axis=1, keepdims=True)
        mapped = np.where(sums > 0, mapped / np.where(sums > 0, sums, 1), plain)
    return mapped.astype(np.float32)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON."""
    write_json(path, {"kind": calibration.kind, "temperature": calibration.temperature, "curves": calibration.curves})


def load_calibration(path: Path, labels: int) -> Calibration:
    """Read the file of `save_calibration`.

    Parameters
    ----------
    path : Path
    labels : int
        Number of labels.

    Raises
    ------
    UserError
        If the file is missing, or does not hold a calibration of so many labels.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing, and without it probabilities differ; restore it, or train the run again")
    saved = read_json(path)
    try:
        found = Calibration(**saved)
        curves = [(np.asarray(c["x"], dtype=float), np.asarray(c["y"], dtype=float)) for c in found.curves]
        sound = found.kind in (None, "temperature", "isotonic") and 0 < float(found.temperature) < math.inf
        sound = sound and len(curves) == (labels if found.kind == "isotonic" else 0)
        sound = sound and all(x.ndim == 1 and len(x) > 0 and x.shape == y.shape for x, y in curves)
    except (TypeError, ValueError, KeyError):
        sound = False
    if not sound:
        raise UserError(f"{path} is damaged: it is no calibration of {labels} labels; restore it")
    return found
