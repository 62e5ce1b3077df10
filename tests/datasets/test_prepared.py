from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.datasets.prepared import Options, Prepared, column_names, write
from llmcls.recipe.load import load_recipe
from tests.datasets.helpers import AMAZON, amazon, prepare
from tests.helpers import ROOT, read_rows


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


def test_all_labels_go_into_one_column_that_training_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare(monkeypatch, amazon, "amazoncat-13k", "--all-labels", "--out", str(tmp_path))
    recipe = load_recipe(ROOT / "recipes" / "amazoncat_full.yaml")
    rows = {key: read_rows(tmp_path / Path(getattr(recipe.data, key)).name) for key in ("train_csv", "test_csv")}
    assert list(rows["train_csv"][0]) == ["uid", "text", *recipe.data.label_columns]
    names = {key: {n for row in r for n in row["labels"].split(recipe.data.label_separator)} for key, r in rows.items()}
    assert names["train_csv"] == set(AMAZON)
    assert names["test_csv"] <= names["train_csv"]


def test_one_class_per_text_needs_no_column_of_all_labels(tmp_path: Path) -> None:
    prepared = Prepared({}, ["text"], ["a", "b"], single=True)
    with pytest.raises(UserError, match="--all-labels is for texts with any number of labels"):
        write(prepared, Options(tmp_path, all_labels=True))
