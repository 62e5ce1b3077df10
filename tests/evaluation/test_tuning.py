from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from llmcls.common.logit import sigmoid
from llmcls.data.labels import LabelSpace
from llmcls.evaluation import tuning as module
from llmcls.evaluation.thresholds import apply_thresholds, fixed_thresholds
from llmcls.evaluation.tuning import Tuning, cross_validated, sampled_rows, search, tune_thresholds
from llmcls.recipe.schema import TrainSection
from tests.evaluation.helpers import random_case

MULTI = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")
BINARY = LabelSpace(["not_a", "a"], ["a"], "binary_classification")


def space(count: int) -> LabelSpace:
    names = [str(i) for i in range(count)]
    return LabelSpace(names, names, "multi_label_classification")


def two_columns(positive: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of a binary task from those of its second class, [rows, 1]."""
    return np.hstack([1 - positive, positive]), np.hstack([~marks, marks])


def overfitting_case(rows: int, positives: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Twelve labels of one kind: with few positives each, the best cut of a single label is noise."""
    rng = np.random.default_rng(seed)
    true = np.zeros((rows, 12), dtype=bool)
    for i in range(12):
        true[rng.choice(rows, positives, replace=False), i] = True
    return sigmoid(rng.normal(np.where(true, -1.5, -4.5), 1.0)), true


def test_labels_without_a_positive_get_the_global_threshold() -> None:
    scores, true = random_case(0)
    true[:, 1] = False
    found = tune_thresholds(scores, true, MULTI, Tuning("per_class", shrinkage=0))
    assert found.values[1] == pytest.approx(tune_thresholds(scores, true, MULTI, Tuning("global")).values[0])


def test_shrinkage_moves_rare_labels_towards_the_global_threshold() -> None:
    scores, true = random_case(1)
    shared = tune_thresholds(scores, true, MULTI, Tuning("global")).values[0]
    own = tune_thresholds(scores, true, MULTI, Tuning("per_class", shrinkage=0)).values
    for column in range(2):
        assert f1_score(true[:, column], scores[:, column] >= own[column]) >= f1_score(
            true[:, column], scores[:, column] >= shared
        )
    far = [abs(v - shared) for v in own]
    for shrinkage in (5.0, 50.0, 1e9):
        near = [
            abs(v - shared) for v in tune_thresholds(scores, true, MULTI, Tuning("per_class", "f1", shrinkage)).values
        ]
        assert all(n <= f + 1e-12 for n, f in zip(near, far, strict=True))
        far = near
    assert max(far) < 1e-6


def test_shrinkage_helps_labels_with_few_positives() -> None:
    (tuned_on, given), (fresh, truth) = overfitting_case(60, 3, 0), overfitting_case(6000, 300, 1)
    found = search(tuned_on, given, space(12), Tuning("per_class").plan(space(12)))
    own, shrunk = (f1_score(truth, fresh >= found.thresholds(k).values, average="macro") for k in (0.0, 20.0))
    assert shrunk > own


@pytest.mark.parametrize("rule", ["fixed", "global", "per_class", "joint", "auto"])
def test_single_label_decisions_have_no_thresholds_to_tune(rule: str) -> None:
    labels = LabelSpace(["a", "b"], ["c"], "single_label_classification", ["a", "b"])
    scores, true = random_case(0)
    assert tune_thresholds(scores, true, labels, Tuning(rule)) == fixed_thresholds(2)


def test_a_binary_problem_tunes_the_threshold_of_its_second_class() -> None:
    scores, true = two_columns(*random_case(2, labels=1))
    tuned = tune_thresholds(scores, true, BINARY, Tuning("per_class"))
    found = f1_score(true[:, 1], apply_thresholds(scores, tuned, BINARY)[:, 1])
    every = [f1_score(true[:, 1], scores[:, 1] >= cut) for cut in np.unique(scores[:, 1])]
    assert found == pytest.approx(max(every))


def test_a_recipe_says_how_thresholds_are_tuned() -> None:
    train = TrainSection(thresholds="global", threshold_metric="f2", threshold_shrinkage=3, at_least_one_label=True)
    assert Tuning.of(train) == Tuning("global", "f2", 3, True)
    assert Tuning.of(TrainSection(metric_for_best_model="f1_samples")) == Tuning(serves="f1_samples")


@pytest.mark.parametrize(
    "serves, rule, tuned_for",
    [
        (None, "joint", "f1_micro"), ("f1_micro", "joint", "f1_micro"), ("f1_macro", "per_class", "f1_macro"),
        ("f1_samples", "joint", "f1_samples"), ("accuracy", "joint", "accuracy"),
        ("hamming_loss", "joint", "hamming_loss"), ("average_precision_macro", "per_class", "f1_macro"),
        ("loss", "per_class", "f1_macro"),
    ],
)  # fmt: skip
def test_the_metric_of_choice_decides_the_rule(serves: str | None, rule: str, tuned_for: str) -> None:
    plan = Tuning(serves=serves).plan(MULTI)
    assert (plan.rule, plan.objective.name) == (rule, tuned_for)


@pytest.mark.parametrize("serves, average", [("f1_micro", "micro"), ("f1_macro", "macro"), ("f1_samples", "samples")])
def test_thresholds_serve_the_metric_of_choice_better_than_the_others_do(serves: str, average: str) -> None:
    # A frequent label, and rare ones whose scores say less.
    rng = np.random.default_rng(0)
    true = rng.random((4000, 5)) < [0.5, 0.1, 0.05, 0.03, 0.02]
    scores = sigmoid(rng.normal(true * np.array([3.0, 1.5, 1.0, 1.0, 1.0]) - 2.0, 1.0))
    reached = {}
    for other in ("f1_micro", "f1_macro", "f1_samples"):
        found = search(scores, true, space(5), Tuning(serves=other).plan(space(5))).thresholds(0.0)
        reached[other] = f1_score(true, scores >= found.values, average=average, zero_division=0)
    assert max(reached, key=reached.__getitem__) == serves


def test_old_rules_keep_their_objective_whatever_the_metric_of_choice() -> None:
    scores, true = random_case(1)
    for rule in ("per_class", "global"):
        assert tune_thresholds(scores, true, MULTI, Tuning(rule, serves="f1_micro")) == tune_thresholds(
            scores, true, MULTI, Tuning(rule, serves="f1_samples")
        )


def test_thresholds_worse_than_one_half_in_cross_validation_are_not_taken() -> None:
    # The scores are right at 0.5 but for noise in the labels; the best cuts of so few rows follow the noise.
    rng = np.random.default_rng(5)
    clean = rng.random((24, 6)) < 0.5
    scores, true = np.where(clean, 0.6, 0.4) + rng.uniform(-0.09, 0.09, (24, 6)), clean ^ (rng.random((24, 6)) < 0.25)
    plan = Tuning(serves="f1_macro").plan(space(6))
    found = tune_thresholds(scores, true, space(6), Tuning(serves="f1_macro"))
    assert found.rule == "fixed"
    assert found.values == [0.5] * 6
    assert found.metric is None
    assert "tuned thresholds are not better on validation: f1_macro 0." in str(found.reason)
    assert str(found.reason).endswith("at 0.5")
    # On the same rows that they were tuned on, they look better: this is why it takes cross-validation.
    own = search(scores, true, space(6), plan).thresholds(0.0)
    assert f1_score(true, scores >= own.values, average="macro") > f1_score(true, scores >= 0.5, average="macro")
    insisted = tune_thresholds(scores, true, space(6), Tuning("per_class"))
    assert insisted.rule == "per_class", "a rule that the recipe names is kept"


def test_cross_validation_chooses_the_shrinkage() -> None:
    noisy = tune_thresholds(*overfitting_case(60, 3, 1), space(12), Tuning(serves="f1_macro"))
    assert "with shrinkage 20" in str(noisy.reason), "nothing is clearly better"
    # Labels whose scores lie far apart need thresholds of their own, however few positives they have.
    rng = np.random.default_rng(0)
    true = rng.random((400, 8)) < 0.03
    scores = sigmoid(rng.normal(0, 0.3, (400, 8)) + 2.0 * true - np.arange(8))
    apart = tune_thresholds(scores, true, space(8), Tuning(serves="f1_macro"))
    assert apart.rule == "per_class"
    assert "with shrinkage 0" in str(apart.reason)
    shrunk = tune_thresholds(scores, true, space(8), Tuning("per_class"))
    assert f1_score(true, scores >= apart.values, average="macro") > 0.2 + f1_score(
        true, scores >= shrunk.values, average="macro"
    )
    # Labels of one kind, whose own best cuts are noise, share one.
    one, alike = overfitting_case(60, 3, 0)
    shared = tune_thresholds(one, alike, space(12), Tuning(serves="f1_macro", shrinkage=0))
    assert shared.rule == "global"
    assert "with one threshold for all" in str(shared.reason)


def binary_case(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """One row in four is positive, and the scores say nothing."""
    rng = np.random.default_rng(seed)
    marks = rng.random((rows, 1)) < 0.245
    return two_columns(sigmoid(rng.normal(-0.8, 0.4, (rows, 1))), marks)


def test_a_binary_task_measured_by_accuracy_does_not_make_everything_positive() -> None:
    (tuned_on, given), (fresh, truth) = binary_case(3, 300), binary_case(1, 2000)

    def accuracy(tuning: Tuning) -> float:
        found = tune_thresholds(tuned_on, given, BINARY, tuning)
        return accuracy_score(truth, apply_thresholds(fresh, found, BINARY))

    assert accuracy(Tuning("per_class")) < 0.35, "F1 of the positive class wants nearly everything to be positive"
    assert accuracy(Tuning(serves="f1_micro")) >= accuracy(Tuning("fixed")) > 0.7


def test_a_binary_task_says_how_many_rows_become_positive() -> None:
    scores, true = binary_case(3, 300)
    found = tune_thresholds(scores, true, BINARY, Tuning())
    assert found.metric == "f1_positive"
    share = apply_thresholds(scores, found, BINARY)[:, 1].mean()
    assert f" with {share:.0%} of the rows positive ({true[:, 1].mean():.0%} are), 0." in str(found.reason)


def test_cross_validated_decisions_use_thresholds_of_other_rows() -> None:
    scores, true = random_case(0, rows=60)
    plan = Tuning("per_class").plan(MULTI)
    decided = cross_validated(scores, true, MULTI, plan, [0.0])[0]
    own = apply_thresholds(scores, search(scores, true, MULTI, plan).thresholds(0.0), MULTI)
    assert f1_score(true, decided, average="macro") < f1_score(true, own, average="macro")
    other = true.copy()
    # The labels of a row have no say in its own decisions.
    other[7] = ~other[7]
    assert (cross_validated(scores, other, MULTI, plan, [0.0])[0][7] == decided[7]).all()


def test_a_single_validation_row_tunes_nothing() -> None:
    scores, true = random_case(0, rows=1)
    found = tune_thresholds(scores, true, MULTI, Tuning())
    assert found == replace(fixed_thresholds(2), reason="a single validation row is not enough to tune thresholds")


def test_recall_at_a_precision_is_kept_even_where_f1_is_better_at_one_half() -> None:
    scores, true = random_case(0)
    found = tune_thresholds(scores, true, MULTI, Tuning(metric="recall@precision=0.9"))
    assert found.rule == "per_class"
    assert found == tune_thresholds(scores, true, MULTI, Tuning("per_class", "recall@precision=0.9"))


def test_nothing_is_selected_where_that_is_best_and_a_probability_of_zero_never_is() -> None:
    scores = np.array([[0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    nothing = tune_thresholds(scores, np.zeros((2, 2), dtype=bool), MULTI, Tuning("global"))
    assert not apply_thresholds(scores, nothing, MULTI).any()
    everything = tune_thresholds(scores, np.ones((2, 2), dtype=bool), MULTI, Tuning("global"))
    assert apply_thresholds(scores, everything, MULTI).tolist() == [[False, True]] * 2


def test_only_so_many_rows_are_cross_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampled_rows(7).tolist() == list(range(7))
    monkeypatch.setattr(module, "CROSS_VALIDATED_ROWS", 5)
    rows = sampled_rows(100)
    assert len(set(rows.tolist())) == 5
    assert (np.diff(rows) > 0).all()
