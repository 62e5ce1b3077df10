from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.special import logit as scipy_logit

from llmcls.common.logit import logit, sigmoid


def test_both_agree_with_scipy() -> None:
    p = np.linspace(0.001, 0.999, 57)
    assert logit(p) == pytest.approx(scipy_logit(p))
    assert sigmoid(10 * p - 5) == pytest.approx(expit(10 * p - 5))


def test_they_are_inverse() -> None:
    x = np.linspace(-15, 15, 31)
    assert logit(sigmoid(x)) == pytest.approx(x)


@pytest.mark.filterwarnings("error")
def test_extreme_values_stay_finite() -> None:
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
    ends = logit(np.array([0.0, 1.0], dtype=np.float32))
    assert np.isfinite(ends).all()
    assert ends == pytest.approx([np.log(1e-9), -np.log(1e-9)], rel=1e-6)


def test_shapes_and_types_are_kept() -> None:
    x = np.zeros((2, 3), dtype=np.float32)
    assert sigmoid(x).shape == (2, 3)
    assert sigmoid(x).dtype == np.float32
    assert logit(x + 0.5).dtype == np.float64
    assert float(logit(0.5)) == 0.0
