"""What an evaluation of a split found. Reports and tables read it, and need no model for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import Marks, bootstrap_intervals
from llmcls.evaluation.metrics import confusions

# Rows per chunk. `predict` writes its results after each chunk. Training uses the same chunks, so that both put a row
# into the same batch and get the same logits.
CHUNK_ROWS = 4096


@dataclass
class Evaluation:
    """Predictions and metrics of a split.

    Attributes
    ----------
    probabilities : float32 [rows, labels]
        With many labels sparse, of the most probable labels of each row.
    predicted : bool [rows, labels]
        The decisions; with many labels sparse.
    metrics : dict
        Metrics by name.
    """

    probabilities: Marks
    predicted: Marks
    metrics: dict[str, Any]


def uncertainty(true: np.ndarray, predicted: np.ndarray, labels: LabelSpace) -> dict[str, Any]:
    """The parts of a final evaluation that are not computed during training.

    Parameters
    ----------
    true, predicted : bool [rows, labels]
    labels : LabelSpace

    Returns
    -------
    dict
        "intervals", see `bootstrap_intervals`, and "confusions", see `confusions`.
    """
    return {
        "intervals": bootstrap_intervals(true, predicted, binary=labels.binary),
        "confusions": confusions(true, predicted, labels.names),
    }
