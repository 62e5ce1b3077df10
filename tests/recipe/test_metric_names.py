from __future__ import annotations

from llmcls.recipe.metric_names import (
    METRIC_NAMES,
    POSITIVE_METRICS,
    RANKED_METRICS,
    default_metric,
    headline,
    metric_direction,
    metric_names,
)


def test_less_loss_is_better() -> None:
    assert metric_direction("loss") == metric_direction("hamming_loss") == -1
    assert metric_direction("f1_micro") == 1


def test_every_metric_has_a_direction_and_only_errors_are_better_low() -> None:
    low = {name for name in METRIC_NAMES if metric_direction(name) == -1}
    assert low == {"loss", "hamming_loss", "calibration_error"}
    assert {"f1_samples", "precision_weighted", "recall_macro", "roc_auc_macro"} <= METRIC_NAMES


def test_a_binary_task_is_about_its_positive_class() -> None:
    assert default_metric("binary_classification") == "f1_positive"
    assert default_metric("multi_label_classification") == default_metric("single_label_classification") == "f1_micro"
    assert metric_names("binary_classification") - METRIC_NAMES == set(POSITIVE_METRICS)
    assert metric_names("multi_label_classification") - METRIC_NAMES == set(RANKED_METRICS)
    assert metric_names("single_label_classification") == METRIC_NAMES
    for problem_type in ("binary_classification", "multi_label_classification", "single_label_classification"):
        assert set(headline(problem_type)) <= metric_names(problem_type)
        assert default_metric(problem_type) in headline(problem_type)
