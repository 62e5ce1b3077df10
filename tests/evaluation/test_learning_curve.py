from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from llmcls.evaluation.learning_curve import (
    Estimate,
    Forecast,
    advice,
    drawn_means,
    extrapolate,
    forecast,
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
    found = forecast(SIZES, values, np.tile(values, (10, 1)))
    assert found is not None
    assert found.rows == 800
    assert found.check == pytest.approx(values[-1], abs=1e-6)
    assert found.gain.value == pytest.approx(4 / np.sqrt(400) - 4 / np.sqrt(800), abs=0.01)
    assert found.last_gain.value == pytest.approx(values[-1] - values[-2])
    assert forecast([50], values[:1], np.zeros((10, 1))) is None
    assert forecast([50, 100], values[:2], np.tile(values[:2], (10, 1))).check is None


@pytest.mark.parametrize(
    "gain, beginning",
    [
        ((0.05, 0.03, 0.07), "More labels: twice as many (800 rows) are predicted to raise accuracy by 0.050"),
        ((0.004, 0.001, 0.008), "Stop here:"),
        ((0.02, 0.005, 0.04), "Probably more labels:"),
        ((0.008, 0.0, 0.02), "Probably stop here:"),
    ],
)
def test_the_advice_follows_from_gain_and_noise(gain: tuple[float, float, float], beginning: str) -> None:
    text = advice(Forecast(800, Estimate(*gain), Estimate(0.06, 0.05, 0.07), None), "accuracy", 400, worth=0.01)
    assert text.startswith(beginning)
    assert "The last step, to 400 rows, brought +0.060 (+0.050 to +0.070)." in text
    assert ("inside the interval" in text) is beginning.startswith("Probably")
