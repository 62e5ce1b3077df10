"""The names of all metrics, and whether more or less is better."""

from __future__ import annotations

AVERAGES = ("micro", "macro", "weighted", "samples")
METRIC_NAMES = frozenset(
    ["loss", "accuracy", "hamming_loss", "average_precision_macro", "roc_auc_macro", "calibration_error"]
    + [f"{kind}_{average}" for kind in ("f1", "precision", "recall") for average in AVERAGES]
)


def metric_direction(name: str) -> int:
    """+1 if a higher value is better, -1 if a lower one is."""
    return -1 if name in ("loss", "hamming_loss", "calibration_error") else 1
