from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, fbeta_score

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.thresholds import (
    Thresholds,
    Tuning,
    apply_thresholds,
    best_cut,
    fixed_thresholds,
    load_thresholds,
    save_thresholds,
    tune_thresholds,
)
from llmcls.recipe.schema import TrainSection

MULTI = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


def random_case(seed: int, rows: int = 120, labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.random((rows, labels)) < 0.3
    return np.clip(rng.random((rows, labels)) * 0.7 + 0.25 * true, 0, 1).astype(np.float32), true


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


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_best_cut_is_the_best_of_all_cuts(seed: int, beta: float) -> None:
    scores, true = random_case(seed)
    column, marks = scores[:, 0].round(2).astype(float), true[:, 0]
    cut = best_cut(column, marks, f"f{beta}")
    every = [fbeta_score(marks, column >= c, beta=beta, zero_division=0) for c in np.unique(column)]
    assert fbeta_score(marks, column >= cut, beta=beta) == pytest.approx(max(every))


@pytest.mark.parametrize("precision", [0.5, 0.8])
def test_recall_at_a_precision_uses_the_lowest_cut_that_reaches_it(precision: float) -> None:
    scores, true = random_case(3, rows=400)
    column, marks = scores[:, 0].astype(float), true[:, 0]
    cut = best_cut(column, marks, f"recall@precision={precision}")

    def both(c: float) -> tuple[float, float]:
        chosen = column >= c
        return (chosen & marks).sum() / chosen.sum(), (chosen & marks).sum() / marks.sum()

    reached = [recall for c in column if (found := both(c))[0] >= precision for recall in [found[1]]]
    assert both(cut)[0] >= precision
    assert both(cut)[1] == pytest.approx(max(reached))


def test_a_precision_that_is_never_reached_gives_the_most_precise_cut() -> None:
    scores, marks = np.array([0.9, 0.8, 0.7]), np.array([False, True, True])
    assert (scores >= best_cut(scores, marks, "recall@precision=0.9")).tolist() == [True, True, True]


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
    # Twelve labels of one kind, three positives each in the tuning rows: the best cut of a single label is noise.
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(12)]
    labels = LabelSpace(names, names, "multi_label_classification")

    def draw(rows: int, positives: int) -> tuple[np.ndarray, np.ndarray]:
        true = np.zeros((rows, 12), dtype=bool)
        for i in range(12):
            true[rng.choice(rows, positives, replace=False), i] = True
        return 1 / (1 + np.exp(-rng.normal(np.where(true, 0.5, -2.5), 1.0))), true

    (tuning, given), (fresh, truth) = draw(60, 3), draw(6000, 300)
    scores = {
        k: f1_score(truth, fresh >= tune_thresholds(tuning, given, labels, Tuning(shrinkage=k)).values, average="macro")
        for k in (0.0, 20.0)
    }
    assert scores[20.0] > scores[0.0]


def test_thresholds_are_saved_by_name_and_read_in_the_requested_order(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    save_thresholds(path, Thresholds("per_class", [0.1, 0.9], True, "f1"), ["x", "y"])
    assert load_thresholds(path, ["y", "x"]) == Thresholds("per_class", [0.9, 0.1], True, "f1")


@pytest.mark.parametrize("rule", ["fixed", "global", "per_class"])
def test_single_label_decisions_have_no_thresholds_to_tune(rule: str) -> None:
    labels = LabelSpace(["a", "b"], ["c"], "single_label_classification", ["a", "b"])
    scores, true = random_case(0)
    assert tune_thresholds(scores, true, labels, Tuning(rule)) == fixed_thresholds(2)


def test_a_binary_problem_tunes_the_threshold_of_its_second_class() -> None:
    labels = LabelSpace(["not_a", "a"], ["a"], "binary_classification")
    positive, marks = random_case(2, labels=1)
    scores, true = np.hstack([1 - positive, positive]), np.hstack([~marks, marks])
    tuned = tune_thresholds(scores, true, labels, Tuning("per_class"))
    found = f1_score(true[:, 1], apply_thresholds(scores, tuned, labels)[:, 1])
    every = [f1_score(true[:, 1], scores[:, 1] >= cut) for cut in np.unique(scores[:, 1])]
    assert found == pytest.approx(max(every))


def test_a_recipe_says_how_thresholds_are_tuned() -> None:
    train = TrainSection(thresholds="global", threshold_metric="f2", threshold_shrinkage=3, at_least_one_label=True)
    assert Tuning.of(train) == Tuning("global", "f2", 3, True)


def test_a_file_without_a_metric_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text('{"rule": "fixed", "values": {"a": 0.5, "b": 1}}', encoding="utf-8")
    assert load_thresholds(path, ["a", "b"]) == Thresholds("fixed", [0.5, 1.0])
