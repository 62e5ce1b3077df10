from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.rule_comparison import compare_rules
from llmcls.evaluation.tuning import Tuning, tune_thresholds
from tests.evaluation.helpers import random_case

MULTI = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


def test_every_rule_is_measured_on_every_split() -> None:
    scored = {"validation": random_case(0), "test": random_case(1)}
    found = compare_rules(scored, MULTI, Tuning())
    assert {rule: values["metric"] for rule, values in found.items()} == {
        "fixed": None, "global": "f1_micro", "per_class": "f1_macro", "joint": "f1_micro",
    }  # fmt: skip
    scores, true = scored["test"]
    for rule, values in found.items():
        thresholds = tune_thresholds(*scored["validation"], MULTI, Tuning(rule)).values
        for name, average in (("f1_micro", "micro"), ("f1_macro", "macro"), ("f1_samples", "samples")):
            expected = f1_score(true, scores >= thresholds, average=average, zero_division=0)
            assert values["test"][name] == pytest.approx(expected)


def test_validation_figures_are_cross_validated() -> None:
    scored = {"validation": random_case(0, rows=40)}
    found = compare_rules(scored, MULTI, Tuning(shrinkage=0))
    scores, true = scored["validation"]
    for rule in ("per_class", "joint"):
        thresholds = tune_thresholds(scores, true, MULTI, Tuning(rule, shrinkage=0)).values
        seen = f1_score(true, scores >= thresholds, average="micro")
        assert found[rule]["validation"]["f1_micro"] < seen


def test_a_binary_task_compares_the_positive_class() -> None:
    labels = LabelSpace(["not_a", "a"], ["a"], "binary_classification")
    positive, marks = random_case(0, labels=1)
    scored = {"validation": (np.hstack([1 - positive, positive]), np.hstack([~marks, marks]))}
    found = compare_rules(scored, labels, Tuning())
    assert list(found) == ["fixed", "per_class", "joint"]
    assert set(found["fixed"]["validation"]) == {"f1_positive", "f1_macro", "accuracy"}


def test_there_is_nothing_to_compare_without_validation_or_thresholds() -> None:
    single = LabelSpace(["a", "b"], ["c"], "single_label_classification", ["a", "b"])
    assert compare_rules({"test": random_case(0)}, MULTI, Tuning()) == {}
    assert compare_rules({"validation": random_case(0)}, single, Tuning()) == {}
