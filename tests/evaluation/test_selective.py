from __future__ import annotations

import numpy as np
import pytest

from llmcls.evaluation.selective import fit_abstention, fit_label_sets, keep, label_sets


def classes(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of five classes that are too sure of themselves, and the true class."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, 5))
    real = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = np.array([generator.choice(5, p=p) for p in real])
    sure = np.exp(4 * logits) / np.exp(4 * logits).sum(axis=1, keepdims=True)
    return sure.astype(np.float32), np.eye(5, dtype=bool)[true]


def several(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of five labels of their own, and the true labels."""
    generator = np.random.default_rng(seed)
    p = generator.beta(0.5, 0.8, size=(rows, 5))
    return p.astype(np.float32), generator.random((rows, 5)) < p


@pytest.mark.parametrize("make", [classes, several])
@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_sets_have_their_coverage_on_new_rows_although_the_model_is_too_sure(make, coverage: float) -> None:
    reached = []
    for seed in range(60):
        sets = fit_label_sets(*make(200, seed), coverage)
        probabilities, true = make(500, 1000 + seed)
        inside = label_sets(probabilities, sets) & true
        shares = inside.sum(axis=1)[true.any(axis=1)] / true.sum(axis=1)[true.any(axis=1)]
        # A row without labels misses none of them.
        reached.append((shares.sum() + (~true.any(axis=1)).sum()) / len(true))
    # A mean over 60 sets of rows: its standard error is below 0.004.
    assert coverage - 0.008 <= np.mean(reached) <= coverage + 0.02


@pytest.mark.parametrize("make, target", [(classes, 0.45), (several, 0.7)])
def test_kept_decisions_have_the_target_precision_on_new_rows_nine_times_in_ten(make, target: float) -> None:
    failed, kept = 0, []
    for seed in range(60):
        probabilities, true = make(300, seed)
        predicted = np.eye(5, dtype=bool)[probabilities.argmax(axis=1)] if make is classes else probabilities > 0.3
        found = fit_abstention(probabilities, predicted, true, target)
        new, real = make(5000, 1000 + seed)
        decided = np.eye(5, dtype=bool)[new.argmax(axis=1)] if make is classes else new > 0.3
        still = keep(new, decided, found)
        kept.append(still.sum() / decided.sum())
        failed += bool(still.any()) and real[still].mean() < target
    # At most a tenth of 60 may fail; with more than 12, chance is below one in a hundred.
    assert failed <= 12
    assert np.mean(kept) > 0.1, "a promise that keeps nothing is empty"


def test_a_target_that_few_rows_cannot_prove_keeps_nothing() -> None:
    probabilities, true = np.full((20, 2), [0.9, 0.1], dtype=np.float32), np.tile([True, False], (20, 1))
    found = fit_abstention(probabilities, true, true, 0.95)
    assert (found.cut, found.kept) == (None, 0.0)
    assert not keep(probabilities, true, found).any()
    # 72 decisions without a mistake prove 0.95 at a quarter of a risk of 0.1, and 71 do not: 0.95 ** 72 < 0.025.
    for rows, cut in ((71, None), (72, pytest.approx(0.9))):
        many, marks = np.repeat(probabilities[:1], rows, axis=0), np.tile([True, False], (rows, 1))
        assert fit_abstention(many, marks, marks, 0.95).cut == cut


def test_a_mistake_among_the_most_probable_decisions_does_not_end_the_search() -> None:
    probabilities = np.linspace(0.99, 0.5, 400, dtype=np.float32)[:, None]
    true = np.ones((400, 1), dtype=bool)
    true[0] = True
    true[3] = False
    true[300:] = False
    found = fit_abstention(probabilities, np.ones_like(true), true, 0.95)
    assert 0.7 < found.kept < 0.8


def test_decisions_of_equal_probability_are_kept_together() -> None:
    # 80 right ones, then 10 of one probability of which the first happens to be right.
    probabilities = np.array([[0.9]] * 80 + [[0.6]] * 10, dtype=np.float32)
    true = np.array([[True]] * 81 + [[False]] * 9)
    found = fit_abstention(probabilities, np.ones_like(true), true, 0.95)
    assert (found.cut, found.precision) == (pytest.approx(0.9), 1.0)
    assert found.kept == pytest.approx(80 / 90)


def test_conformal_sets_are_those_of_the_formula() -> None:
    # Sadinle et al. 2019: the floor(alpha (n + 1))-th smallest probability of the true class.
    probabilities, true = classes(99, 3)
    of_true = np.sort(probabilities[true])
    sets = fit_label_sets(probabilities, true, 0.9)
    assert sets.cut == pytest.approx(of_true[int(0.1 * 100) - 1])
    # With so few rows, only all labels promise so much.
    assert fit_label_sets(probabilities, true, 0.995).cut == 0.0
    assert label_sets(probabilities, fit_label_sets(probabilities, true, 0.995)).all()
