from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from llmcls.evaluation.learning_curve import (
    SEED_DEVIATION,
    Estimate,
    Forecast,
    advice,
    drawn_means,
    extrapolate,
    forecast,
    seed_deviation,
)

SIZES = [50, 100, 200, 400]


def decisions(rng: np.random.Generator, true: np.ndarray, error: float) -> np.ndarray:
    return true ^ (rng.random(true.shape) < error)


@pytest.fixture
def true() -> np.ndarray:
    return np.random.default_rng(0).random((400, 3)) < 0.4


def test_values_are_those_of_scikit_learn_and_intervals_hold_them(true: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    runs = [[decisions(rng, true, error) for _ in range(2)] for error in (0.3, 0.1)]
    values, drawn = drawn_means(true, runs, "f1_micro")
    expected = [np.mean([f1_score(true, run, average="micro") for run in of_size]) for of_size in runs]
    assert values == pytest.approx(expected)
    assert drawn.shape == (500, 2)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    assert (low < values).all()
    assert (values < high).all()


def test_a_power_law_with_a_floor_is_continued() -> None:
    sizes = np.array(SIZES)
    values = 1 - (0.1 + 5 * sizes**-0.7)
    assert extrapolate(sizes, values, 800) == pytest.approx(1 - (0.1 + 5 * 800**-0.7), abs=0.01)
    drawn = np.stack([values, values - 0.01])
    assert extrapolate(sizes, drawn, 800).shape == (2,)


def test_what_does_not_grow_is_not_predicted_to_fall() -> None:
    assert extrapolate(np.array([100, 200]), np.array([0.8, 0.75]), 400) == pytest.approx(0.775, abs=0.01)
    assert extrapolate(np.array([100, 200]), np.array([1.0, 1.0]), 400) == pytest.approx(1.0, abs=1e-5)


def test_the_check_predicts_the_largest_size_from_the_smaller_ones() -> None:
    values = 1 - 4 / np.sqrt(np.array(SIZES))
    found = forecast(SIZES, [[v] for v in values], np.tile(values, (10, 1)))
    assert found is not None
    assert found.rows == 800
    assert found.check == pytest.approx(values[-1], abs=1e-6)
    assert found.gain.value == pytest.approx(4 / np.sqrt(400) - 4 / np.sqrt(800), abs=0.01)
    assert found.last_gain.value == pytest.approx(values[-1] - values[-2])
    assert forecast([50], [[0.5]], np.zeros((10, 1))) is None
    assert forecast([50, 100], [[v] for v in values[:2]], np.tile(values[:2], (10, 1))).check is None


def test_the_deviation_of_seeds_is_a_guess_until_there_are_many() -> None:
    assert seed_deviation([[0.8], [0.9]]) == pytest.approx(SEED_DEVIATION)
    rng = np.random.default_rng(0)
    noisy = [(1 - np.exp(rng.normal(np.log(0.2), 0.3, size=200))).tolist() for _ in range(2)]
    assert seed_deviation(noisy) == pytest.approx(0.3, rel=0.1)
    assert seed_deviation([[0.8, 0.8, 0.8]]) < SEED_DEVIATION


def test_the_interval_of_a_gain_is_wide_though_the_test_rows_are_without_noise() -> None:
    values = 1 - 4 / np.sqrt(np.array(SIZES))
    drawn = np.tile(values, (1000, 1))
    one = forecast(SIZES, [[v] for v in values], drawn)
    assert one is not None
    assert one.gain.low < 0.8 * one.gain.value
    assert one.gain.high > 1.2 * one.gain.value
    equal = forecast(SIZES, [[v] * 10 for v in values], drawn)
    assert equal is not None
    assert equal.gain.high - equal.gain.low < one.gain.high - one.gain.low, "seeds that agree make it narrower"


def test_intervals_have_most_of_the_gains_that_are_found() -> None:
    # Curves of another law than the fitted one, with the noise of samples and seeds.
    rng, sizes, held = np.random.default_rng(0), np.array([100, 200, 400, 800]), 0
    for _ in range(100):
        errors = 0.05 + 0.6 / (1 + (sizes / rng.uniform(20, 150)) ** rng.uniform(0.5, 1.2))
        seen = 1 - errors * np.exp(0.04 * rng.normal(size=4))
        found = forecast([100, 200, 400], [[v] for v in seen[:3]], np.tile(seen[:3], (200, 1)))
        assert found is not None
        held += found.gain.low <= errors[2] - errors[3] <= found.gain.high
    assert held >= 85


@pytest.mark.parametrize(
    "gain, check, beginning",
    [
        ((0.05, 0.03, 0.07), 0.9, "More labels: twice as many (800 rows) are predicted to raise accuracy by 0.050"),
        ((0.05, 0.03, 0.07), None, "More labels:"),
        ((0.004, 0.001, 0.008), 0.9, "Stop here:"),
        ((0.004, 0.001, 0.008), None, "Stop here:"),
        ((0.02, 0.005, 0.04), 0.9, "Probably more labels:"),
        ((0.008, 0.0, 0.02), 0.9, "Probably stop here:"),
        ((0.02, 0.005, 0.04), None, "Too early to tell:"),
        ((0.008, 0.0, 0.02), None, "Too early to tell:"),
    ],
)
def test_the_advice_follows_from_gain_noise_and_sizes(
    gain: tuple[float, float, float], check: float | None, beginning: str
) -> None:
    text = advice(Forecast(800, Estimate(*gain), Estimate(0.06, 0.05, 0.07), check), "accuracy", 400, worth=0.01)
    assert text.startswith(beginning)
    assert "The last step, to 400 rows, brought +0.060 (+0.050 to +0.070)." in text
    assert ("inside the interval" in text) is beginning.startswith(("Probably", "Too early"))
