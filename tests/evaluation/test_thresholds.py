from __future__ import annotations

from pathlib import Path

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.thresholds import Thresholds, apply_thresholds, load_thresholds, save_thresholds

MULTI = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


def test_each_problem_type_has_its_own_decision() -> None:
    p = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], dtype=np.float32)
    values = Thresholds("fixed", [0.5, 0.45])
    binary = LabelSpace(["not_a", "a"], ["a"], "binary_classification")
    single = LabelSpace(["a", "b"], ["c"], "single_label_classification", ["a", "b"])
    assert apply_thresholds(p, values, MULTI).tolist() == [[False, True], [True, False], [True, True]]
    assert apply_thresholds(p, values, binary).tolist() == [[False, True], [True, False], [False, True]]
    assert apply_thresholds(p, values, single).sum(1).tolist() == [1, 1, 1]


def test_at_least_one_label_is_the_one_closest_to_its_threshold() -> None:
    p = np.array([[0.3, 0.4], [0.9, 0.1]], dtype=np.float32)
    chosen = apply_thresholds(p, Thresholds("fixed", [0.35, 0.8], at_least_one=True), MULTI)
    assert chosen.tolist() == [[True, False], [True, False]]


def test_a_label_implies_its_ancestors() -> None:
    labels = LabelSpace(["a", "a/b", "a/b/c", "d"], ["x"], "multi_label_classification", hierarchy="/", separator="|")
    p = np.array([[0.1, 0.1, 0.9, 0.1], [0.9, 0.1, 0.1, 0.1]], dtype=np.float32)
    chosen = apply_thresholds(p, Thresholds("fixed", [0.5] * 4), labels)
    assert chosen.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_thresholds_are_saved_by_name_and_read_in_the_requested_order(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    save_thresholds(path, Thresholds("per_class", [0.1, 0.9], True, "f1"), ["x", "y"])
    assert load_thresholds(path, ["y", "x"]) == Thresholds("per_class", [0.9, 0.1], True, "f1")


def test_a_file_without_a_metric_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text('{"rule": "fixed", "values": {"a": 0.5, "b": 1}}', encoding="utf-8")
    assert load_thresholds(path, ["a", "b"]) == Thresholds("fixed", [0.5, 1.0])
