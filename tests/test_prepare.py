"""Each source in its real format, in small: the hub's features, and the collection's own SGML."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from llmcls.common.user_error import UserError
from llmcls.datasets.prepared import column_names
from llmcls.prepare import main
from llmcls.recipe.load import load_recipe
from tests.helpers import ROOT

# From the most to the least frequent, as in the real set.
AMAZON = [
    "books", "movies & tv", "music", "pop", "literature & fiction", "movies", "education & reference", "rock",
    "used & rental textbooks", "new", "zz rare",
]  # fmt: skip


def amazon_rows(count: int, start: int) -> dict[str, list[Any]]:
    # Row i has the labels whose number is at most i % 12: label 0 is the most frequent, and one row in 12 has none.
    numbers = [[(n * 3) % 11 for n in range(i % 12)] for i in range(count)]
    return {
        "uid_original": [f"B{i:09d}" for i in range(count)],
        "title": [f"title {i}" for i in range(count)],
        "content": [f"content, with a comma\nand line {i}" for i in range(count)],
        "target_ind": numbers,
        "target_rel": [[1.0] * len(n) for n in numbers],
        "text": [f"title {i}\ncontent, with a comma\nand line {i}" for i in range(count)],
        "uid": list(range(start, start + count)),
    }


def amazon(name: str, config: str | None, split: str | None) -> datasets.Dataset:
    assert name == "pietrolesci/amazoncat-13k"
    if config == "labels":
        # The hub's table of names; the number of a label is its row. Names stand in the order of their numbers.
        names = [""] * 11
        for rank, label in enumerate(AMAZON):
            names[(rank * 3) % 11] = label
        return datasets.Dataset.from_dict({"labels": names})
    return datasets.Dataset.from_dict(amazon_rows(240 if split == "train" else 60, 0 if split == "train" else 1000))


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


def prepare(monkeypatch: pytest.MonkeyPatch, fetched: Any, *arguments: str) -> None:
    monkeypatch.setattr(
        "llmcls.datasets.sources.fetch", lambda name, config=None, split=None: fetched(name, config, split)
    )
    main(list(arguments))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_amazon_gives_the_recipes_columns_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare(monkeypatch, amazon, "amazoncat-13k", "--out", str(tmp_path))
    recipe = load_recipe(ROOT / "recipes" / "amazon.yaml")
    for key in ("train_csv", "val_csv", "test_csv"):
        rows = read(tmp_path / Path(getattr(recipe.data, key)).name)
        assert list(rows[0]) == [recipe.data.id_column, recipe.data.target_text_column, *recipe.data.label_columns]
        assert all("1" in row.values() for row in rows)
    train, validation = read(tmp_path / "train_top10.csv"), read(tmp_path / "validation_top10.csv")
    assert len(validation) == round(0.1 * (len(train) + len(validation)))
    assert not {r["uid"] for r in train} & {r["uid"] for r in validation}
    assert len(train) + len(validation) == 220
    assert train[0]["text"].count("\n") == 2
    mapping = json.loads((tmp_path / "label_mapping.json").read_text(encoding="utf-8"))["labels"]
    assert [m["name"] for m in mapping] == AMAZON[:10]
    assert [m["column"] for m in mapping] == recipe.data.label_columns
    counts = [sum(row[m["column"]] == "1" for row in train) for m in mapping]
    assert counts == [m["train_rows"] for m in mapping]


def test_rows_without_a_label_are_kept_when_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare(monkeypatch, amazon, "amazoncat-13k", "--out", str(tmp_path), "--keep-unlabelled", "--top", "3")
    assert len(read(tmp_path / "train_top3.csv")) + len(read(tmp_path / "validation_top3.csv")) == 240


def test_the_same_seed_draws_the_same_validation_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        prepare(monkeypatch, amazon, "amazoncat-13k", "--out", str(tmp_path / name), "--seed", seed)
    a, b, c = (read(tmp_path / n / "validation_top10.csv") for n in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("name", "names"),
    [("ag_news", ["World", "Sports", "Business", "Sci/Tech"]), ("yelp", ["1 star", "2 star", "3 stars"])],
)
def test_classes_become_one_column(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, names: list[str]
) -> None:
    fetched = classes(names, {"train": 40, "test": 8})
    prepare(monkeypatch, lambda *_: fetched, name, "--out", str(tmp_path), "--limit", "6")
    train = read(tmp_path / "train.csv")
    assert list(train[0]) == ["uid", "text", "label"]
    assert {row["label"] for row in train} <= set(names)
    assert [len(read(tmp_path / f"{s}.csv")) for s in ("train", "validation", "test")] == [6, 4, 6]
    test = read(tmp_path / "test.csv")
    assert all(row["label"] == names[int(row["uid"].split("-")[1]) % len(names)] for row in test)


def test_emotions_keep_their_splits_and_their_unlabelled_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare(monkeypatch, lambda *_: emotions(), "go_emotions", "--out", str(tmp_path))
    rows = read(tmp_path / "validation.csv")
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
    assert read(tmp_path / "train.csv")[0] == {"uid": "train-0", "head": "h1", "words": "w1", "label": "b c"}
    with pytest.raises(UserError, match="has no column 'sort'; it has head, words, kind"):
        prepare(monkeypatch, lambda *a: fetched, *arguments[:-1], "sort", "--out", str(tmp_path))


SGML = """<!DOCTYPE lewis SYSTEM "lewis.dtd">
<REUTERS TOPICS="YES" LEWISSPLIT="TRAIN" CGISPLIT="TRAINING-SET" OLDID="5544" NEWID="1">
<DATE>26-FEB-1987 15:01:01.79</DATE><TOPICS><D>money-fx</D><D>earn</D></TOPICS><PLACES><D>usa</D></PLACES>
<TEXT>&#2;
<TITLE>BAHIA &lt;BHI&gt; REVIEW</TITLE><DATELINE>    SALVADOR, Feb 26 - </DATELINE><BODY>Showers continued
    throughout the week &amp; beyond.
 Reuter
&#3;</BODY></TEXT>
</REUTERS>
<REUTERS TOPICS="YES" LEWISSPLIT="TEST" CGISPLIT="TRAINING-SET" OLDID="1" NEWID="14826">
<TOPICS><D>earn</D></TOPICS><TEXT TYPE="BRIEF">&#2;
******<TITLE>BLAH AGREES TO MERGE</TITLE>Blah Blah
&#3;</TEXT></REUTERS>
<REUTERS TOPICS="NO" LEWISSPLIT="TRAIN" CGISPLIT="TRAINING-SET" OLDID="2" NEWID="3">
<TOPICS></TOPICS><TEXT><TITLE>not of the split</TITLE></TEXT></REUTERS>
<REUTERS TOPICS="YES" LEWISSPLIT="NOT-USED" CGISPLIT="TRAINING-SET" OLDID="2" NEWID="4">
<TOPICS><D>earn</D></TOPICS><TEXT><TITLE>unused</TITLE></TEXT></REUTERS>
<REUTERS TOPICS="YES" LEWISSPLIT="TRAIN" CGISPLIT="TRAINING-SET" OLDID="5" NEWID="6">
<TOPICS><D>earn</D></TOPICS><TEXT><TITLE>SECOND</TITLE><BODY>More.</BODY></TEXT></REUTERS>
"""


def test_reuters_is_read_from_its_own_files(tmp_path: Path) -> None:
    source = tmp_path / "sgml"
    source.mkdir()
    (source / "reut2-000.sgm").write_text(SGML, encoding="latin-1")
    main(["reuters", "--out", str(tmp_path / "out"), "--source", str(source)])
    rows = read(tmp_path / "out" / "train.csv") + read(tmp_path / "out" / "validation.csv")
    first = next(row for row in rows if row["uid"] == "1")
    assert first == {
        "uid": "1", "title": "BAHIA <BHI> REVIEW", "body": "Showers continued throughout the week & beyond.",
        "earn": "1", "money_fx": "1",
    }  # fmt: skip
    assert {row["uid"] for row in rows} == {"1", "6"}
    (test,) = read(tmp_path / "out" / "test.csv")
    assert (test["uid"], test["title"], test["earn"]) == ("14826", "BLAH AGREES TO MERGE", "1")
    assert "Blah Blah" in test["body"]


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
    assert [r["uid"] for r in read(tmp_path / "test.csv")] == ["10", "11"]


def test_column_names_are_clean_and_never_the_same() -> None:
    assert column_names(["Movies & TV", "movies_tv", "Sci/Tech", "!!"]) == {
        "Movies & TV": "movies_tv", "movies_tv": "movies_tv_2", "Sci/Tech": "sci_tech", "!!": "label",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["hub", "--source", "x"], "hub needs --source"),
        (["yelp", "--validation", "2"], "--validation is 2.0"),
        (["yelp", "--limit", "0"], "--limit is 0"),
        (["reuters", "--source", "nowhere"], "contains no reut2"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main([*arguments, "--out", str(tmp_path)])


def test_a_hub_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    # The tests run offline.
    with pytest.raises(UserError, match="fancyzhx/ag_news: the dataset cannot be loaded from the hub"):
        main(["ag_news", "--out", str(tmp_path)])
