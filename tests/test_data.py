from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import label_space
from llmcls.data.splits import tokenize_split
from llmcls.data.tables import read_table
from llmcls.model.pretrained import load_tokenizer
from llmcls.recipe.load import load_recipe
from tests.conftest import read_rows, write_csv


def load(recipe_path: Path, table_path: Path | None = None) -> Any:
    recipe = load_recipe(recipe_path)
    path = str(table_path or recipe.data.train_csv)
    table = read_table(path)
    labels = label_space(recipe, read_table(recipe.data.train_csv))
    return tokenize_split(table, "train", path, recipe, load_tokenizer(recipe.model), labels), labels


def small(tmp_path: Path, write_recipe: Any, content: bytes, **changes: Any) -> tuple[Any, Any]:
    path = tmp_path / "small.csv"
    path.write_bytes(content)
    changes = {"data__label_columns": ["pos", "neg"], "data__text_fields": ["text"], "data__id_column": "id"} | changes
    return load(write_recipe(data__train_csv=str(path), **changes), path)


def test_labels_are_a_float_matrix_and_tokens_end_where_the_text_ends(write_recipe, products: Path) -> None:
    split, labels = load(write_recipe())
    rows = read_rows(products / "train.csv")
    assert split.labels.dtype == np.float32
    assert split.labels.tolist() == [[float(row[name]) for name in labels.names] for row in rows]
    assert split.ids() == [row["uid"] for row in rows]
    assert split.lengths.min() >= 1
    assert split.lengths.max() <= 64
    assert all(len(split.tokens[i]) == split.lengths[i] for i in range(len(split)))


def test_bom_windows_line_ends_quoted_newlines_and_odd_texts_survive(write_recipe, tmp_path: Path, tiny_llama) -> None:
    content = (
        '\ufeffid,text,pos,neg\r\n007,"two\r\nlines, one cell",1,0\r\n008,NA,0,1\r\n009,,0,0\r\n010,Zürich ☃,1,1\r\n'
    )
    split, _ = small(tmp_path, write_recipe, content.encode("utf-8"))
    recipe = load_recipe(write_recipe())
    tokenizer = load_tokenizer(recipe.model)
    assert split.ids() == ["007", "008", "009", "010"]
    texts = [tokenizer.decode(split.tokens[i], skip_special_tokens=True) for i in range(4)]
    assert texts[0].replace("\r\n", "\n") == "two\nlines, one cell"
    assert texts[1:] == ["NA", "", "Zürich ☃"]
    assert split.lengths[2] == 1
    assert split.labels.tolist() == [[1, 0], [0, 1], [0, 0], [1, 1]]


def test_empty_text_fields_are_skipped_when_joined(write_recipe, tmp_path: Path) -> None:
    content = b"id,title,text,pos,neg\n1,Head,,1,0\n2,,Body,0,1\n3,Head,Body,0,1\n"
    split, _ = small(tmp_path, write_recipe, content, data__text_fields=["title", "text"])
    tokenizer = load_tokenizer(load_recipe(write_recipe()).model)
    texts = [tokenizer.decode(split.tokens[i], skip_special_tokens=True) for i in range(3)]
    assert texts == ["Head", "Body", "Head\nBody"]


def test_tsv_jsonl_and_parquet_give_what_csv_gives(write_recipe, tmp_path: Path, products: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

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


def test_classes_are_read_from_the_training_file(write_recipe, tmp_path: Path) -> None:
    content = b"id,text,kind\n1,a,pear\n2,b,apple\n3,c,fig\n4,d,apple\n"
    changes = {"data__label_columns": ["kind"], "model__problem_type": "single_label_classification"}
    split, labels = small(tmp_path, write_recipe, content, **changes)
    assert labels.names == ["apple", "fig", "pear"]
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize(
    "cells, names, expected",
    [(["1", "0", "1"], ["not_kind", "kind"], [1, 0, 1]), (["spam", "ham", "spam"], ["ham", "spam"], [1, 0, 1])],
)
def test_binary_labels_are_numbers_or_two_names(write_recipe, tmp_path: Path, cells, names, expected) -> None:
    rows = "".join(f"{i},text {i},{c}\n" for i, c in enumerate(cells))
    changes = {"data__label_columns": ["kind"], "model__problem_type": "binary_classification"}
    split, labels = small(tmp_path, write_recipe, f"id,text,kind\n{rows}".encode(), **changes)
    assert labels.names == names
    assert split.labels.tolist() == expected


def test_a_label_without_a_positive_row_is_warned_of(write_recipe, tmp_path: Path, caplog) -> None:
    from llmcls.data.splits import warn_about_split

    split, labels = small(tmp_path, write_recipe, b"id,text,pos,neg\n1,a,1,0\n2,b,1,0\n")
    with caplog.at_level("WARNING", logger="llmcls"):
        import logging

        logging.getLogger("llmcls").propagate = True
        warn_about_split(split, labels, 64)
    assert "label 'neg' has no positive row" in caplog.text


def test_tokenizing_again_reads_the_cache(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = load(write_recipe())

    def never(*_: Any) -> None:
        raise AssertionError("tokenized twice")

    monkeypatch.setattr("llmcls.data.splits.encode", never)
    second, _ = load(write_recipe())
    assert np.array_equal(first.lengths, second.lengths)
    with pytest.raises(AssertionError, match="tokenized twice"):
        load(write_recipe(data__max_length=63))


def test_a_class_unknown_to_the_training_file_is_named(write_recipe, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", [{"id": i, "text": "t", "kind": k} for i, k in enumerate("ab")])
    test = write_csv(tmp_path / "test.csv", [{"id": 1, "text": "t", "kind": "c"}])
    recipe = write_recipe(
        data__train_csv=str(train), data__label_columns=["kind"], data__text_fields=["text"], data__id_column="id",
        model__problem_type="single_label_classification",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"test\.csv, row 1, column 'kind': 'c' is not a class of the training file"):
        load(recipe, test)
