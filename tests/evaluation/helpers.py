"""Random scores with known labels."""

from __future__ import annotations

import numpy as np


def random_case(seed: int, rows: int = 120, labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [rows, labels] that say something about the labels, bool [rows, labels]."""
    rng = np.random.default_rng(seed)
    true = rng.random((rows, labels)) < 0.3
    return np.clip(rng.random((rows, labels)) * 0.7 + 0.25 * true, 0, 1).astype(np.float32), true
