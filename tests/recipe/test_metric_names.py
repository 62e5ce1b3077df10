from __future__ import annotations

from llmcls.recipe.metric_names import METRIC_NAMES, metric_direction


def test_less_loss_is_better() -> None:
    assert metric_direction("loss") == metric_direction("hamming_loss") == -1
    assert metric_direction("f1_micro") == 1


def test_every_metric_has_a_direction_and_only_errors_are_better_low() -> None:
    low = {name for name in METRIC_NAMES if metric_direction(name) == -1}
    assert low == {"loss", "hamming_loss", "calibration_error"}
    assert {"f1_samples", "precision_weighted", "recall_macro", "roc_auc_macro"} <= METRIC_NAMES
