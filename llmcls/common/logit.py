"""The logit and its inverse, for arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Probabilities are stored in float32, which cannot tell values closer to 0 or 1 apart.
_SMALLEST = 1e-9


def logit(p: npt.ArrayLike) -> np.ndarray:
    """log(p / (1 - p)), with p clipped to [1e-9, 1 - 1e-9].

    Parameters
    ----------
    p : float, any shape

    Returns
    -------
    float64, the shape of p
    """
    clipped = np.clip(np.asarray(p, dtype=np.float64), _SMALLEST, 1 - _SMALLEST)
    return np.log(clipped) - np.log1p(-clipped)


def sigmoid(x: npt.ArrayLike) -> np.ndarray:
    """1 / (1 + exp(-x)), written with tanh so that no value overflows.

    Parameters
    ----------
    x : float, any shape

    Returns
    -------
    The floating type and shape of x.
    """
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x)))
