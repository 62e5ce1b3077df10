from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from llmcls.evaluation.bootstrap import NAMES, bootstrap_intervals, mean_intervals, paired_differences, resampled


def decisions(seed: int, rows: int, error: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.random((rows, 3)) < 0.4
    return true, true ^ (rng.random((rows, 3)) < error)


def test_a_resample_of_every_row_once_agrees_with_scikit_learn() -> None:
    true, predicted = decisions(0, 80, 0.2)
    found = resampled(np.ones((1, 80), dtype=int), true, predicted)
    assert found["f1_micro"][0] == pytest.approx(f1_score(true, predicted, average="micro"))
    assert found["f1_macro"][0] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert found["accuracy"][0] == pytest.approx(accuracy_score(true, predicted))


def test_a_resample_with_repeats_agrees_with_scikit_learn_on_the_repeated_rows() -> None:
    true, predicted = decisions(1, 50, 0.3)
    draws = np.random.default_rng(0).multinomial(50, np.full(50, 0.02), size=3)
    found = resampled(draws, true, predicted)
    for i, draw in enumerate(draws):
        rows = np.repeat(np.arange(50), draw)
        assert found["f1_macro"][i] == pytest.approx(f1_score(true[rows], predicted[rows], average="macro"))


def test_no_positives_and_no_predictions_are_no_error() -> None:
    nothing = np.zeros((10, 3), dtype=bool)
    assert bootstrap_intervals(nothing, nothing)["f1_micro"] == [0.0, 0.0]
    assert bootstrap_intervals(~nothing, ~nothing)["f1_macro"] == [1.0, 1.0]


def test_the_interval_of_macro_f1_contains_it_where_most_labels_are_rare() -> None:
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 501)
    values = rng.choice(500, size=800, p=share / share.sum())
    found = np.where(rng.random(800) < 0.8, values, rng.choice(500, size=800))
    true, predicted = np.eye(500, dtype=bool)[values], np.eye(500, dtype=bool)[found]
    value = resampled(np.ones((1, 800), dtype=int), true, predicted)["f1_macro"][0]
    assert value == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))
    low, high = bootstrap_intervals(true, predicted)["f1_macro"]
    assert low < value < high


def test_a_binary_task_has_an_interval_of_its_positive_class() -> None:
    _, predicted = decisions(3, 200, 0.2)
    true = np.stack([~predicted[:, 0], predicted[:, 0]], axis=1)
    noisy = np.stack([~predicted[:, 1], predicted[:, 1]], axis=1)
    found = bootstrap_intervals(true, noisy, binary=True)
    assert list(found) == ["f1_positive", *NAMES]
    assert found["f1_positive"][0] < f1_score(true[:, 1], noisy[:, 1]) < found["f1_positive"][1]
    assert list(bootstrap_intervals(true, noisy)) == list(NAMES), "two labels that are not classes have none"


def test_intervals_cover_the_truth_at_the_stated_rate() -> None:
    # The truth is the metric of a large sample of the same classifier; 400 experiments of 300 rows each.
    true, predicted = decisions(99, 400_000, 0.15)
    truth = {n: v[0] for n, v in resampled(np.ones((1, len(true)), dtype=int), true, predicted).items()}
    inside = dict.fromkeys(NAMES, 0)
    for seed in range(400):
        found = bootstrap_intervals(*decisions(seed, 300, 0.15), seed=seed, resamples=300)
        for name in NAMES:
            inside[name] += found[name][0] <= truth[name] <= found[name][1]
    # 95 % of 400 is 380; three standard errors of a share of 0.95 are 0.033.
    for name in NAMES:
        assert 0.95 - 0.033 <= inside[name] / 400 <= 0.95 + 0.033, name


def test_pairing_detects_a_small_difference_that_two_intervals_hide() -> None:
    true, first = decisions(5, 2000, 0.15)
    second = first.copy()
    # The second is right in forty more cells, and wrong in no other.
    wrong = np.argwhere(first != true)[:40]
    second[tuple(wrong.T)] = true[tuple(wrong.T)]
    low, high = (bootstrap_intervals(true, d)["f1_micro"] for d in (first, second))
    assert low[1] > high[0]
    difference = paired_differences(true, [first], [second])["f1_micro"]
    assert np.percentile(difference, 2.5) > 0


def test_several_seeds_widen_the_difference() -> None:
    true, good = decisions(6, 1000, 0.1)
    _, bad = decisions(6, 1000, 0.3)
    alone = paired_differences(true, [good], [good])["f1_micro"].std()
    spread = paired_differences(true, [good, bad], [good, bad])["f1_micro"].std()
    assert alone == 0
    assert spread > 0.02


def test_the_interval_of_a_mean_over_seeds_has_it_inside_and_covers_the_choice_of_seed() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((300, 3)) < 0.4
    runs = [true ^ (rng.random(true.shape) < share) for share in (0.05, 0.1, 0.3)]
    found = mean_intervals(true, runs)
    means = np.mean([resampled(np.ones((1, 300), dtype=int), true, run)["f1_micro"][0] for run in runs])
    low, high = found["f1_micro"]
    assert low < means < high
    same = mean_intervals(true, [runs[1]] * 3)["f1_micro"]
    assert high - low > 2 * (same[1] - same[0]), "the seeds differ more than the rows"
    assert mean_intervals(true, [runs[1]])["f1_micro"] == pytest.approx(
        bootstrap_intervals(true, runs[1])["f1_micro"], abs=0.01
    )
