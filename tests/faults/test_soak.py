"""A small part of `python -m tests.faults.soak`: the same kinds of hits in every run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if not hasattr(os, "fork"):
    pytest.skip("no fork", allow_module_level=True)

from tests.faults.soak import WORKS, Soak

pytestmark = pytest.mark.slow


def test_a_training_and_a_prediction_that_are_hit_end_as_if_nothing_had_happened(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("HF_DATASETS_CACHE", "OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    # A hit by time may come too late on a fast machine; one at a file operation never does.
    soak = Soak(tmp_path, seed=3, by_time=0.0)
    soak.once(WORKS[0], 0, hits=2)
    soak.once(WORKS[2], 1, hits=1)
    assert soak.tally.problems == []
    assert sum(soak.tally.hits.values()) >= 2
    assert sum(soak.tally.ends.values()) == 2
    assert (soak.tally.hangs, soak.tally.orphans) == (0, 0)
