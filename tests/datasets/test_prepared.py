from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.datasets.prepared import column_names
from tests.datasets.helpers import amazon, prepare
from tests.helpers import read_rows


def test_rows_without_a_label_are_kept_when_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare(monkeypatch, amazon, "amazoncat-13k", "--out", str(tmp_path), "--keep-unlabelled", "--top", "3")
    assert len(read_rows(tmp_path / "train_top3.csv")) + len(read_rows(tmp_path / "validation_top3.csv")) == 240


def test_the_same_seed_draws_the_same_validation_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        prepare(monkeypatch, amazon, "amazoncat-13k", "--out", str(tmp_path / name), "--seed", seed)
    a, b, c = (read_rows(tmp_path / n / "validation_top10.csv") for n in "abc")
    assert a == b
    assert a != c


def test_column_names_are_clean_and_never_the_same() -> None:
    assert column_names(["Movies & TV", "movies_tv", "Sci/Tech", "!!"]) == {
        "Movies & TV": "movies_tv", "movies_tv": "movies_tv_2", "Sci/Tech": "sci_tech", "!!": "label",
    }  # fmt: skip
