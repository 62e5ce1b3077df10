from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from tests.datasets.helpers import AMAZON, amazon, prepare
from tests.helpers import ROOT, read_rows


def classes(names: list[str], splits: dict[str, int]) -> datasets.DatasetDict:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.DatasetDict({
        split: datasets.Dataset.from_dict(
            {"text": [f"{split} text {i}" for i in range(rows)], "label": [i % len(names) for i in range(rows)]},
            features,
        )
        for split, rows in splits.items()
    })  # fmt: skip


def emotions() -> datasets.DatasetDict:
    names = ["admiration", "amusement", "neutral"]
    kind = datasets.List(datasets.ClassLabel(names=names))
    features = datasets.Features({"text": datasets.Value("string"), "labels": kind, "id": datasets.Value("string")})
    return datasets.DatasetDict({
        split: datasets.Dataset.from_dict(
            {"text": ["a", "b", "c"], "labels": [[0], [2, 1], []], "id": ["x1", "x2", "x3"]}, features
        )
        for split in ("train", "validation", "test")
    })  # fmt: skip


def test_amazon_gives_the_recipes_columns_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare(monkeypatch, amazon, "amazoncat-13k", "--out", str(tmp_path))
    recipe = load_recipe(ROOT / "recipes" / "amazon.yaml")
    for key in ("train_csv", "val_csv", "test_csv"):
        rows = read_rows(tmp_path / Path(getattr(recipe.data, key)).name)
        assert list(rows[0]) == [recipe.data.id_column, recipe.data.target_text_column, *recipe.data.label_columns]
        assert all("1" in row.values() for row in rows)
    train, validation = read_rows(tmp_path / "train_top10.csv"), read_rows(tmp_path / "validation_top10.csv")
    assert len(validation) == round(0.1 * (len(train) + len(validation)))
    assert not {r["uid"] for r in train} & {r["uid"] for r in validation}
    assert len(train) + len(validation) == 220
    assert train[0]["text"].count("\n") == 2
    mapping = json.loads((tmp_path / "label_mapping.json").read_text(encoding="utf-8"))["labels"]
    assert [m["name"] for m in mapping] == AMAZON[:10]
    assert [m["column"] for m in mapping] == recipe.data.label_columns
    counts = [sum(row[m["column"]] == "1" for row in train) for m in mapping]
    assert counts == [m["train_rows"] for m in mapping]


@pytest.mark.parametrize(
    ("name", "names"),
    [("ag_news", ["World", "Sports", "Business", "Sci/Tech"]), ("yelp", ["1 star", "2 star", "3 stars"])],
)
def test_classes_become_one_column(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, names: list[str]
) -> None:
    fetched = classes(names, {"train": 40, "test": 8})
    prepare(monkeypatch, lambda *_: fetched, name, "--out", str(tmp_path), "--limit", "6")
    train = read_rows(tmp_path / "train.csv")
    assert list(train[0]) == ["uid", "text", "label"]
    assert {row["label"] for row in train} <= set(names)
    assert [len(read_rows(tmp_path / f"{s}.csv")) for s in ("train", "validation", "test")] == [6, 4, 6]
    test = read_rows(tmp_path / "test.csv")
    assert all(row["label"] == names[int(row["uid"].split("-")[1]) % len(names)] for row in test)


def test_emotions_keep_their_splits_and_their_unlabelled_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare(monkeypatch, lambda *_: emotions(), "go_emotions", "--out", str(tmp_path))
    rows = read_rows(tmp_path / "validation.csv")
    assert list(rows[0]) == ["uid", "text", "admiration", "amusement", "neutral"]
    assert [[row["admiration"], row["amusement"], row["neutral"]] for row in rows] == [
        ["1", "0", "0"], ["0", "1", "1"], ["0", "0", "0"],
    ]  # fmt: skip


def test_any_hub_dataset_by_its_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = {"head": ["h1", "h2"], "words": ["w1", "w2"], "kind": ["b c", "a"]}
    fetched = datasets.DatasetDict({s: datasets.Dataset.from_dict(table) for s in ("train", "validation")})
    arguments = ["hub", "--source", "someone/thing:small", "--text", "head", "words", "--label", "kind"]
    asked = []
    prepare(monkeypatch, lambda *a: asked.append(a) or fetched, *arguments, "--out", str(tmp_path))
    assert asked == [("someone/thing", "small", None)]
    assert read_rows(tmp_path / "train.csv")[0] == {"uid": "train-0", "head": "h1", "words": "w1", "label": "b c"}
    with pytest.raises(UserError, match="has no column 'sort'; it has head, words, kind"):
        prepare(monkeypatch, lambda *a: fetched, *arguments[:-1], "sort", "--out", str(tmp_path))


def test_reuters_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def rows(first: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict(
            {
                "text": ["body"] * 3, "text_type": ['"NORM"'] * 3, "topics": [["earn"], ["acq", "earn"], []],
                "title": ["T"] * 3, "new_id": [f'"{first + i}"' for i in range(3)],
            }
        )  # fmt: skip

    fetched = datasets.DatasetDict({"train": rows(0), "test": rows(10), "unused": rows(20)})
    prepare(monkeypatch, lambda *_: fetched, "reuters", "--out", str(tmp_path))
    assert [r["uid"] for r in read_rows(tmp_path / "test.csv")] == ["10", "11"]
