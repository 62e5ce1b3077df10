from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from llmcls.common.logit import sigmoid
from llmcls.data.labels import LabelSpace
from llmcls.recipe.schema import TrainSection
from llmcls.training.checkpoints import Progress
from llmcls.training.selection import judge, validate, warn_if_constant
from tests.conftest import Experiment
from tests.helpers import metrics_of, read_json, train
from tests.results.helpers import make_split

MULTI = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


def warming_up(rows: int = 400, shift: float = -4.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that rank rare labels well, float32, but lie below 0 all, as those of a model that warms up."""
    rng = np.random.default_rng(0)
    true = rng.random((rows, 2)) < 0.05
    return (rng.normal(2.0 * true, 0.5) + shift).astype(np.float32), true.astype(np.float32)


def judged(name: str, *evaluations: tuple[float, float]) -> list[tuple[bool, int]]:
    """Whether each evaluation (value, loss) was the best so far, and the evaluations since the best."""
    progress, found = Progress(1, 16), []
    for step, (value, loss) in enumerate(evaluations):
        progress.step = step
        found.append((judge(progress, name, {name: value, "loss": loss}), progress.stale))
    return found


def test_labels_below_one_half_are_seen_with_tuned_thresholds() -> None:
    logits, values = warming_up()
    found = validate(logits, make_split(values, len(values)), MULTI, TrainSection())
    assert found.at_half == {"f1_micro": 0.0, "f1_macro": 0.0}
    assert found.metrics["f1_micro"] > 0.7
    assert found.rule in ("joint", "global")


def test_thresholds_that_a_recipe_fixes_decide_in_training_too() -> None:
    logits, values = warming_up()
    found = validate(logits, make_split(values, len(values)), MULTI, TrainSection(thresholds="fixed"))
    assert found.metrics["f1_micro"] == 0.0
    assert found.rule == "fixed"


def test_where_one_half_is_right_both_are_the_same() -> None:
    logits, values = warming_up(shift=-1.0)
    found = validate(logits, make_split(values, len(values)), MULTI, TrainSection(thresholds="fixed"))
    expected = f1_score(values > 0, sigmoid(logits) >= 0.5, average="macro")
    assert found.metrics["f1_macro"] == pytest.approx(expected)
    assert found.at_half["f1_macro"] == pytest.approx(expected)


def test_single_labels_are_decided_by_the_most_probable_class() -> None:
    labels = LabelSpace(["a", "b"], ["c"], "single_label_classification", ["a", "b"])
    logits, values = np.array([[-3.0, -4.0], [-5.0, -4.0], [-1.0, -2.0]], dtype=np.float32), np.array([0, 1, 1])
    found = validate(logits, make_split(values, 3), labels, TrainSection())
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)
    assert found.rule == "fixed"


def test_more_is_better_or_less_as_the_metric_says() -> None:
    assert judged("f1_micro", (0.5, 1.0), (0.6, 2.0), (0.4, 0.5)) == [(True, 0), (True, 0), (False, 1)]
    assert judged("hamming_loss", (0.5, 1.0), (0.4, 2.0), (0.6, 0.5)) == [(True, 0), (True, 0), (False, 1)]
    assert judged("loss", (1.0, 1.0), (0.9, 0.9), (0.9, 0.9)) == [(True, 0), (True, 0), (False, 1)]


def test_the_loss_decides_between_equal_values_and_resets_the_patience() -> None:
    falling = judged("f1_micro", (0.0, 1.0), (0.0, 0.9), (0.0, 0.8))
    assert falling == [(True, 0)] * 3
    rising = judged("f1_micro", (0.0, 1.0), (0.0, 1.1), (0.0, 1.2))
    assert rising == [(True, 0), (False, 1), (False, 2)]


def history(*values: float) -> list[dict[str, Any]]:
    return [{"step": i, "validation": {"f1_micro": value}} for i, value in enumerate(values)]


def test_a_metric_that_does_not_move_is_warned_about_once(log_lines: list[str]) -> None:
    for count in range(1, 6):
        warn_if_constant(history(*[0.0] * count), "f1_micro")
    assert len(log_lines) == 1
    assert log_lines[0].startswith("f1_micro was 0.0000 in the last 3 evaluations, so the validation loss decides")
    warn_if_constant(history(0.0, 0.1, 0.1, 0.1), "f1_micro")
    assert len(log_lines) == 2
    warn_if_constant(history(0.1, 0.2, 0.2), "f1_micro")
    warn_if_constant(history(0.2, 0.1, 0.2, 0.1), "f1_micro")
    assert len(log_lines) == 2


def test_a_run_whose_metric_is_zero_goes_on_and_keeps_the_model_with_the_lowest_loss(write_recipe, log_lines) -> None:
    recipe = write_recipe(
        train__thresholds="fixed", train__metric_for_best_model="f1_micro", train__early_stopping_patience=1,
        train__eval_steps=3, train__max_steps=12, train__learning_rate=4e-3, train__warmup_ratio=0.0,
        model__lora_dropout=0.0,
    )  # fmt: skip
    found = metrics_of(train(recipe) / "run_0")
    validation = [entry["validation"] for entry in found["history"]]
    assert [v["f1_micro"] for v in validation] == [0.0] * 4
    losses = [v["loss"] for v in validation]
    assert losses == sorted(losses, reverse=True)
    assert found["best_step"] == 12
    assert sum("f1_micro was 0.0000 in the last 3 evaluations" in line for line in log_lines) == 1


def test_the_history_says_with_which_thresholds_a_value_was_reached(trained_once: Experiment) -> None:
    for run in trained_once.runs:
        found = read_json(run / "metrics.json")
        last = found["history"][-1]
        assert set(last["at_half"]) == {"f1_micro", "f1_macro"}
        assert last["thresholds"] == found["thresholds"]["rule"]
        assert last["validation"]["f1_micro"] == pytest.approx(found["validation"]["f1_micro"], abs=1e-6)
        assert last["at_half"]["f1_micro"] == pytest.approx(found["at_half"]["validation"]["f1_micro"], abs=1e-6)
