from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import label_space
from llmcls.data.splits import Split, TokenStore, tokenize_split, warn_about_split
from llmcls.data.tables import read_table
from llmcls.model.pretrained import load_tokenizer
from llmcls.recipe.load import load_recipe
from tests.helpers import read_rows, refusal, write_csv


def load(recipe_path: Path, table_path: Path | None = None, labelled: bool = True) -> Any:
    recipe = load_recipe(recipe_path)
    path = str(table_path or recipe.data.train_csv)
    table = read_table(path)
    labels = label_space(recipe, read_table(recipe.data.train_csv))
    return tokenize_split(table, "train", path, recipe, load_tokenizer(recipe.model), labels, labelled), labels


def small(tmp_path: Path, write_recipe: Any, content: bytes, **changes: Any) -> tuple[Any, Any]:
    path = tmp_path / "small.csv"
    path.write_bytes(content)
    changes = {"data__label_columns": ["pos", "neg"], "data__text_fields": ["text"], "data__id_column": "id"} | changes
    return load(write_recipe(data__train_csv=str(path), **changes), path)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log of llmcls, which does not propagate to other handlers once it is configured."""
    import logging

    root = logging.getLogger("llmcls")
    before, root.propagate = root.propagate, True
    with caplog.at_level("INFO", logger="llmcls"):
        yield caplog
    root.propagate = before


def test_labels_are_a_float_matrix_and_tokens_end_where_the_text_ends(write_recipe, products: Path) -> None:
    split, labels = load(write_recipe())
    rows = read_rows(products / "train.csv")
    assert split.labels.dtype == np.float32
    assert split.labels.tolist() == [[float(row[name]) for name in labels.names] for row in rows]
    assert split.ids() == [row["uid"] for row in rows]
    assert split.lengths.min() >= 1
    assert split.lengths.max() <= 64
    assert all(len(split.tokens[i]) == split.lengths[i] for i in range(len(split)))


def test_classes_are_numbers_and_delimited_labels_a_matrix(write_recipe, tmp_path: Path) -> None:
    content = b"id,text,kind\n1,a,pear\n2,b,apple|pear\n3,c,fig\n"
    changes = {"data__label_columns": ["kind"], "model__problem_type": "single_label_classification"}
    split, _ = small(tmp_path, write_recipe, content, **changes)
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == [2, 0, 1]
    changes = {"model__problem_type": "multi_label_classification", "data__label_separator": "|"}
    split, _ = small(tmp_path, write_recipe, content, **({"data__label_columns": ["kind"]} | changes))
    assert split.labels.dtype == np.float32
    assert split.labels.tolist() == [[0, 0, 1], [1, 0, 1], [0, 1, 0]]


def test_bom_windows_line_ends_quoted_newlines_and_odd_texts_survive(write_recipe, tmp_path: Path) -> None:
    content = (
        '\ufeffid,text,pos,neg\r\n007,"two\r\nlines, one cell",1,0\r\n008,NA,0,1\r\n009,,0,0\r\n010,Zürich ☃,1,1\r\n'
    )
    split, _ = small(tmp_path, write_recipe, content.encode("utf-8"))
    tokenizer = load_tokenizer(load_recipe(write_recipe()).model)
    assert split.ids() == ["007", "008", "009", "010"]
    texts = [tokenizer.decode(split.tokens[i], skip_special_tokens=True) for i in range(4)]
    assert texts[0].replace("\r\n", "\n") == "two\nlines, one cell"
    assert texts[1:] == ["NA", "", "Zürich ☃"]
    assert split.lengths[2] == 1
    assert split.labels.tolist() == [[1, 0], [0, 1], [0, 0], [1, 1]]


def test_every_format_gives_the_same_split(write_recipe, tmp_path: Path, products: Path) -> None:
    rows = read_rows(products / "train.csv")
    typed = [{k: (int(v) if v in ("0", "1") else v) for k, v in row.items()} for row in rows]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in typed), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "t.parquet")
    lines = ["\t".join(rows[0])] + ["\t".join(r.values()) for r in rows]
    (tmp_path / "t.tsv").write_text("\n".join(lines), encoding="utf-8")
    expected, _ = load(write_recipe())
    for name in ("t.jsonl", "t.parquet", "t.tsv"):
        split, _ = load(write_recipe(), tmp_path / name)
        assert split.ids() == expected.ids(), name
        assert np.array_equal(split.labels, expected.labels), name
        assert all(np.array_equal(split.tokens[i], expected.tokens[i]) for i in range(len(split))), name


def test_tokenizing_again_reads_the_cache(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = load(write_recipe())

    def never(*_: Any) -> None:
        raise AssertionError("tokenized twice")

    monkeypatch.setattr("llmcls.data.splits.encode", never)
    second, _ = load(write_recipe())
    assert np.array_equal(first.lengths, second.lengths)
    # Another maximum length gives other tokens, so the cache must not be used.
    with pytest.raises(AssertionError, match="tokenized twice"):
        load(write_recipe(data__max_length=63))


def test_a_table_without_labels_is_tokenized_for_prediction(write_recipe, tmp_path: Path, products: Path) -> None:
    rows = [{k: row[k] for k in ("uid", "title", "description")} for row in read_rows(products / "test.csv")]
    split, _ = load(write_recipe(), write_csv(tmp_path / "texts.csv", rows), labelled=False)
    assert split.labels is None
    assert split.ids(2, 4) == [rows[2]["uid"], rows[3]["uid"]]
    with pytest.raises(ValueError, match=r"texts\.csv was read without labels"):
        _ = split.known_labels


def test_rows_without_an_id_column_are_numbered_from_0(write_recipe) -> None:
    split, _ = load(write_recipe(data__id_column=None))
    assert split.ids(0, 3) == ["0", "1", "2"]


def test_tokens_are_read_across_the_chunks_of_a_column() -> None:
    column = pa.chunked_array([[[1, 2], [3]], [], [[4, 5, 6], [7]]], type=pa.list_(pa.int32()))
    store = TokenStore(column)
    assert store.lengths().tolist() == [2, 1, 3, 1]
    assert [store[i].tolist() for i in range(4)] == [[1, 2], [3], [4, 5, 6], [7]]


def test_a_label_without_a_positive_row_causes_a_warning(write_recipe, tmp_path: Path, logged) -> None:
    split, labels = small(tmp_path, write_recipe, b"id,text,pos,neg\n1,a,1,0\n2,b,1,0\n")
    warn_about_split(split, labels, 64)
    assert "label 'neg' has no positive row" in logged.text


def test_the_log_says_how_many_texts_were_cut(logged) -> None:
    tokens = [np.arange(n, dtype=np.int32) for n in (3, 8, 8, 8)]
    split = Split("test", "test.csv", tokens, np.array([3, 8, 8, 8]), None, None)
    warn_about_split(split, None, 8)
    assert "4 rows" in logged.text
    assert "75.0 %" in logged.text


def test_a_missing_column_gets_the_nearest_one(write_recipe, capsys) -> None:
    def said(**changes: Any) -> str:
        return refusal(capsys, "check", write_recipe(**changes))

    found = said(data__text_fields=["titel"])
    assert "has no column 'titel' (data.text_fields); did you mean 'title'?" in found
    found = said(data__text_fields=["title"], data__id_column="id")
    assert "has no column 'id' (data.id_column); did you mean 'uid'?" in found
    found = said(data__id_column="uid", data__label_columns=["book"])
    assert "has no column 'book' (data.label_columns); did you mean 'books'?" in found


def test_an_id_that_occurs_twice_is_named_with_its_rows(write_recipe, products: Path, tmp_path: Path, capsys) -> None:
    rows = read_rows(products / "train.csv")
    rows[4]["uid"] = rows[1]["uid"]
    path = write_csv(tmp_path / "train.csv", rows)
    found = refusal(capsys, "check", write_recipe(data__train_csv=str(path)))
    assert str(path) in found
    assert "column 'uid': id 'P21000001'" in found
    assert "rows 2 and 5" in found
    assert "data.id_column=null" in found


def test_rows_without_an_id_are_named(write_recipe, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"id": None, "text": "a", "pos": 1, "neg": 0}, {"id": "x", "text": "b", "pos": 0, "neg": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), encoding="utf-8")
    recipe = write_recipe(
        data__train_csv=str(path), data__label_columns=["pos", "neg"], data__text_fields=["text"], data__id_column="id"
    )
    with pytest.raises(UserError, match="column 'id': rows 1 and 3 have no id"):
        load(recipe)


@pytest.mark.parametrize("ids", [[1, "a", 2.5], ["1", None, {"a": 1}], [[1], [2], [3]]], ids=str)
def test_ids_of_several_types_are_texts(write_recipe, tmp_path: Path, ids: list[Any]) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "text": "a", "pos": 1, "neg": 0}) + "\n" for i in ids), encoding="utf-8"
    )
    split, _ = load(
        write_recipe(
            data__train_csv=str(path),
            data__label_columns=["pos", "neg"],
            data__text_fields=["text"],
            data__id_column="id",
        )
    )
    assert split.ids() == ["" if i is None else str(i) for i in ids]
    rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*rows, rows[0]]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"id '{re.escape(str(ids[0]))}' occurs in rows 1 and 4"):
        load(tmp_path / "recipe.yaml")
