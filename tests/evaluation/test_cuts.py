"""Each search is compared with all cuts, tried one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, fbeta_score

from llmcls.evaluation.cuts import (
    all_cuts,
    best_cut,
    binary_cut,
    cell_cuts,
    micro_cuts,
    row_cuts,
    row_value,
    shared_row_cut,
)
from llmcls.evaluation.objective import Average, Objective, measure
from tests.evaluation.helpers import random_case


def tiny_case(seed: int, rows: int = 6, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Scores float64 with many ties, and labels of which some have no positive."""
    rng = np.random.default_rng(seed)
    true = rng.random((rows, labels)) < rng.random(labels) * 0.8
    return (rng.random((rows, labels)) + 0.4 * true).round(1), true


def every_cut(column: np.ndarray) -> list[float]:
    """A cut for every set of decisions that a column allows."""
    return [*np.unique(column), column.max() + 1]


def test_all_cuts_are_every_set_of_decisions_once() -> None:
    for seed in range(20):
        scores, true = tiny_case(seed, labels=1)
        found = all_cuts(scores[:, 0], true[:, 0])
        decided = [tuple(scores[:, 0] >= cut) for cut in found.values]
        assert sorted(decided) == sorted(tuple(scores[:, 0] >= cut) for cut in every_cut(scores))
        assert [sum(d) for d in decided] == found.selected.tolist()
        assert [int((np.array(d) & true[:, 0]).sum()) for d in decided] == found.tp.tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_best_cut_is_the_best_of_all_cuts(seed: int, beta: float) -> None:
    scores, true = random_case(seed)
    column, marks = scores[:, 0].round(2).astype(float), true[:, 0]
    cut = best_cut(column, marks, Objective("macro", beta))
    every = [fbeta_score(marks, column >= c, beta=beta, zero_division=0) for c in np.unique(column)]
    assert fbeta_score(marks, column >= cut, beta=beta) == pytest.approx(max(every))


@pytest.mark.parametrize("precision", [0.5, 0.8])
def test_recall_at_a_precision_uses_the_lowest_cut_that_reaches_it(precision: float) -> None:
    scores, true = random_case(3, rows=400)
    column, marks = scores[:, 0].astype(float), true[:, 0]
    cut = best_cut(column, marks, Objective("macro", precision=precision))

    def both(c: float) -> tuple[float, float]:
        chosen = column >= c
        return (chosen & marks).sum() / chosen.sum(), (chosen & marks).sum() / marks.sum()

    reached = [recall for c in column if (found := both(c))[0] >= precision for recall in [found[1]]]
    assert both(cut)[0] >= precision
    assert both(cut)[1] == pytest.approx(max(reached))


def test_a_precision_that_is_never_reached_gives_the_most_precise_cut() -> None:
    scores, marks = np.array([0.9, 0.8, 0.7]), np.array([False, True, True])
    cut = best_cut(scores, marks, Objective("macro", precision=0.9))
    assert (scores >= cut).tolist() == [True, True, True]


def test_nothing_is_selected_where_nothing_is_true() -> None:
    scores = np.array([0.9, 0.8])
    for objective in (Objective("macro"), Objective("macro", precision=0.9)):
        assert not (scores >= best_cut(scores, np.array([False, False]), objective)).any()


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_micro_cuts_are_the_best_of_all_combinations(beta: float) -> None:
    for seed in range(25):
        scores, true = tiny_case(seed)
        found = measure(true, scores >= micro_cuts(scores, true, beta), Objective("micro", beta))
        combinations = itertools.product(*(every_cut(column) for column in scores.T))
        best = max(measure(true, scores >= np.array(cuts), Objective("micro", beta)) for cuts in combinations)
        assert found == pytest.approx(best), seed


def test_micro_cuts_are_better_than_the_best_cut_of_each_label() -> None:
    # Of a frequent label with poor scores and a rare one, F1 of each label selects more than F1 of all cells wants.
    rng = np.random.default_rng(0)
    true = rng.random((3000, 2)) < [0.4, 0.02]
    scores = rng.normal(true * np.array([3.0, 0.4]), 1.0)
    own = [best_cut(scores[:, i], true[:, i], Objective("macro")) for i in range(2)]
    jointly = micro_cuts(scores, true, 1.0)
    assert f1_score(true, scores >= jointly, average="micro") > f1_score(true, scores >= own, average="micro") + 0.01
    assert f1_score(true, scores >= jointly, average="macro") < f1_score(true, scores >= own, average="macro")


def test_cell_cuts_have_the_fewest_wrong_cells() -> None:
    for seed in range(25):
        scores, true = tiny_case(seed)
        wrong = ((scores >= cell_cuts(scores, true)) != true).sum(axis=0)
        fewest = [min(((c >= cut) != t).sum() for cut in every_cut(c)) for c, t in zip(scores.T, true.T, strict=True)]
        assert wrong.tolist() == fewest


@pytest.mark.parametrize("average", ["samples", "exact"])
def test_the_shared_cut_of_rows_is_the_best_of_all_cuts(average: Average) -> None:
    objective = Objective(average)
    for seed in range(25):
        scores, true = tiny_case(seed)
        found = measure(true, scores >= shared_row_cut(scores, true, row_value(objective)), objective)
        assert found == pytest.approx(max(measure(true, scores >= c, objective) for c in every_cut(scores))), seed


@pytest.mark.parametrize("average", ["samples", "exact"])
def test_row_cuts_cannot_be_improved_by_moving_one_label(average: Average) -> None:
    objective = Objective(average)
    for seed in range(25):
        scores, true = tiny_case(seed)
        cuts = row_cuts(scores, true, objective)
        found = measure(true, scores >= cuts, objective)
        shared = measure(true, scores >= shared_row_cut(scores, true, row_value(objective)), objective)
        assert found >= shared - 1e-12
        for i, column in enumerate(scores.T):
            for cut in every_cut(column):
                moved = np.where(np.arange(3) == i, cut, cuts)
                assert measure(true, scores >= moved, objective) <= found + 1e-9
        combinations = itertools.product(*(every_cut(column) for column in scores.T))
        best = max(measure(true, scores >= np.array(c), objective) for c in combinations)
        assert found == pytest.approx(best), "on sets this small, the local maximum is the global one"


@pytest.mark.parametrize("average", ["exact", "macro", "weighted"])
def test_the_cut_of_a_binary_task_counts_both_classes(average: Average) -> None:
    def value(true: np.ndarray, predicted: np.ndarray) -> float:
        if average == "exact":
            return accuracy_score(true, predicted)
        return f1_score(true, predicted, average=average, zero_division=0)

    for seed in range(20):
        scores, true = tiny_case(seed, rows=12, labels=1)
        cut = binary_cut(scores[:, 0], true[:, 0], Objective(average))
        best = max(value(true[:, 0], scores[:, 0] >= c) for c in every_cut(scores))
        assert value(true[:, 0], scores[:, 0] >= cut) == pytest.approx(best)
