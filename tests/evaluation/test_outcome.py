from __future__ import annotations

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.outcome import uncertainty

LABELS = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


def test_a_final_evaluation_has_intervals_and_confusions() -> None:
    true = np.array([[True, False], [True, False]])
    found = uncertainty(true, ~true, LABELS)
    assert found["intervals"]["f1_micro"] == [0.0, 0.0]
    assert found["confusions"] == [{"true": "a", "predicted": "b", "rows": 2}]
