from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, fbeta_score

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.thresholds import (
    Thresholds,
    Tuning,
    apply_thresholds,
    best_cut,
    load_thresholds,
    save_thresholds,
    tune_thresholds,
)
from llmcls.thresholds import main
from tests.test_train import train

MULTI = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


def random_case(seed: int, rows: int = 120, labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.random((rows, labels)) < 0.3
    return np.clip(rng.random((rows, labels)) * 0.7 + 0.25 * true, 0, 1).astype(np.float32), true


def test_each_kind_of_problem_decides_its_own_way() -> None:
    p = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], dtype=np.float32)
    values = Thresholds("fixed", [0.5, 0.45])
    binary = LabelSpace(["not_a", "a"], ["a"], "binary_classification")
    single = LabelSpace(["a", "b"], ["c"], "single_label_classification", ["a", "b"])
    assert apply_thresholds(p, values, MULTI).tolist() == [[False, True], [True, False], [True, True]]
    assert apply_thresholds(p, values, binary).tolist() == [[False, True], [True, False], [False, True]]
    assert apply_thresholds(p, values, single).sum(1).tolist() == [1, 1, 1]


def test_at_least_one_label_is_the_one_nearest_to_its_own_threshold() -> None:
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
def test_recall_at_a_precision_takes_the_lowest_cut_that_keeps_it(precision: float) -> None:
    scores, true = random_case(3, rows=400)
    column, marks = scores[:, 0].astype(float), true[:, 0]
    cut = best_cut(column, marks, f"recall@precision={precision}")

    def both(c: float) -> tuple[float, float]:
        chosen = column >= c
        return (chosen & marks).sum() / chosen.sum(), (chosen & marks).sum() / marks.sum()

    reached = [recall for c in column if (found := both(c))[0] >= precision for recall in [found[1]]]
    assert both(cut)[0] >= precision
    assert both(cut)[1] == pytest.approx(max(reached))


def test_a_precision_out_of_reach_takes_the_most_precise_cut() -> None:
    scores, marks = np.array([0.9, 0.8, 0.7]), np.array([False, True, True])
    assert (scores >= best_cut(scores, marks, "recall@precision=0.9")).tolist() == [True, True, True]


def test_labels_without_a_positive_take_the_global_threshold() -> None:
    scores, true = random_case(0)
    true[:, 1] = False
    found = tune_thresholds(scores, true, MULTI, Tuning("per_class", shrinkage=0))
    assert found.values[1] == pytest.approx(tune_thresholds(scores, true, MULTI, Tuning("global")).values[0])


def test_shrinkage_pulls_rare_labels_to_the_global_threshold() -> None:
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


def test_shrinkage_helps_where_positives_are_few() -> None:
    # Twelve labels of one kind, three positives each in the tuning rows: a label's own best cut is an accident.
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


def test_they_are_saved_by_name_and_read_in_the_order_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    save_thresholds(path, Thresholds("per_class", [0.1, 0.9], True, "f1"), ["x", "y"])
    assert load_thresholds(path, ["y", "x"]) == Thresholds("per_class", [0.9, 0.1], True, "f1")


def files(run: Path) -> tuple[dict, dict, str]:
    read = [json.loads((run / name).read_text(encoding="utf-8")) for name in ("thresholds.json", "metrics.json")]
    return read[0], read[1], (run / "predictions_test.jsonl").read_text(encoding="utf-8")


def test_a_run_is_retuned_without_training_and_back(write_recipe, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(write_recipe(train__num_train_epochs=1)) / "run_0"
    tuned, metrics, lines = files(run)
    assert tuned["rule"] == "per_class"
    main(["--run", str(run), "--rule", "fixed", "--value", "0.3", "--at-least-one"])
    assert "micro-F1" in capsys.readouterr().out
    fixed, other, _ = files(run)
    assert set(fixed["values"].values()) == {0.3}
    assert all(
        json.loads(line)["labels"] for line in (run / "predictions_test.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert other["test"]["f1_micro"] != metrics["test"]["f1_micro"]
    main(["--run", str(run)])
    again, back, lines_back = files(run)
    assert back["test"]["f1_macro"] == pytest.approx(metrics["test"]["f1_macro"])
    assert again["values"] == pytest.approx(tuned["values"], abs=1e-6)
    assert lines_back == lines


def test_test_labels_have_no_say_in_the_thresholds(write_recipe, recipe_values, products: Path, tmp_path: Path) -> None:
    from tests.helpers import TOPICS, read_rows, write_csv

    rows = read_rows(products / "test.csv")
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = [row | {t: rows[j][t] for t in TOPICS} for row, j in zip(rows, order, strict=True)]
    recipe = write_recipe(train__num_train_epochs=1)
    true = train(recipe, "exp.run_name=given") / "run_0"
    path = tmp_path / "shuffled.csv"
    write_csv(path, shuffled)
    other = train(recipe, "exp.run_name=shuffled", f"data.test_csv={path}") / "run_0"
    assert files(true)[0] == files(other)[0]
    assert files(true)[1]["test"]["f1_micro"] != files(other)[1]["test"]["f1_micro"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--metric", "accuracy"], "--metric is 'accuracy'; it must be f1"),
        (["--rule", "fixed", "--value", "1.5"], "--value between 0 and 1"),
    ],
)
def test_what_cannot_be_tuned_is_said(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main(["--run", str(tmp_path), *arguments])


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        main(["--run", str(tmp_path)])
