from __future__ import annotations

from pathlib import Path

import numpy as np

from llmcls.thresholds import Thresholds, apply_thresholds, load_thresholds, save_thresholds


def test_each_kind_of_problem_decides_its_own_way() -> None:
    p = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], dtype=np.float32)
    values = Thresholds("fixed", [0.5, 0.45])
    assert apply_thresholds(p, values, "multi_label_classification").tolist() == [
        [False, True],
        [True, False],
        [True, True],
    ]
    assert apply_thresholds(p, values, "binary_classification").tolist() == [
        [False, True],
        [True, False],
        [False, True],
    ]
    assert apply_thresholds(p, values, "single_label_classification").sum(1).tolist() == [1, 1, 1]


def test_they_are_saved_by_name_and_read_in_the_order_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    save_thresholds(path, Thresholds("fixed", [0.1, 0.9]), ["x", "y"])
    assert load_thresholds(path, ["y", "x"]).values == [0.9, 0.1]
