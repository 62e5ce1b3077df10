from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.data.tables import cell_text, read_table, require_columns
from tests.helpers import refusal

BROKEN_FILES: list[tuple[bytes, str]] = [
    (b"", "is empty; its first line must name the columns"),
    (b"uid,title,title\n1,a,b\n", "has the column 'title' twice"),
    (b"uid,title,description,books\n1,a,b,1,0\n", "row 1 (line 2) has 5 cells, the header has 4"),
    (b"uid,title,description,books\n1,a,b\n", "row 1 (line 2) has 3 cells, the header has 4"),
    (b"uid,title,description,books\n1,\x81\xfe,b,1\n", "is not UTF-8"),
    (b"uid,title,description,books\n", "has no rows"),
]


@pytest.mark.parametrize("content, sentence", BROKEN_FILES, ids=[sentence[:50] for _, sentence in BROKEN_FILES])
def test_a_broken_file_is_refused(write_recipe, tmp_path: Path, capsys, content: bytes, sentence: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    found = refusal(capsys, "check", write_recipe(data__train_csv=str(path), data__label_columns=["books"]))
    assert sentence in found
    assert str(path) in found


def test_a_file_that_does_not_exist_gets_the_nearest_one(write_recipe, tmp_path: Path, capsys) -> None:
    found = refusal(capsys, "check", write_recipe(data__train_csv="nowhere/train.csv"))
    assert "data.train_csv: nowhere/train.csv " in found
    (tmp_path / "train.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"traim\.csv .*train\.csv"):
        read_table(tmp_path / "traim.csv")


def test_cells_of_a_csv_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n007,NA\n1e5,\n", encoding="utf-8")
    assert read_table(path).to_list() == [{"id": "007", "text": "NA"}, {"id": "1e5", "text": ""}]


def test_json_and_parquet_keep_their_types(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 7, "text": "x"}\n{"id": 8, "text": null}\n', encoding="utf-8")
    assert read_table(tmp_path / "a.jsonl").to_list() == [{"id": 7, "text": "x"}, {"id": 8, "text": None}]


def test_a_line_longer_than_the_csv_module_allows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1," + "x" * 200_000 + "\n", encoding="utf-8")
    assert len(read_table(path)[0]["text"]) == 200_000


def test_an_unknown_extension_and_an_unreadable_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.docx").touch()
    with pytest.raises(UserError, match=r"--input: .*a\.docx has the extension '\.docx'; use one of \.csv, \.tsv"):
        read_table(tmp_path / "a.docx", "--input")
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet"):
        read_table(tmp_path / "a.parquet")


def test_nothing_is_the_empty_text() -> None:
    assert [cell_text(v) for v in (None, float("nan"), "NA", 3, 1.5, "")] == ["", "", "NA", "3", "1.5", ""]


def test_a_column_unlike_all_others_gets_the_list_of_columns(products: Path) -> None:
    table = read_table(products / "test.csv")
    require_columns(table, ["uid", "title"], "test.csv", "data.text_fields")
    with pytest.raises(UserError, match=r"test\.csv has no column 'zzz' \(data\.id_column\); it has uid, title"):
        require_columns(table, ["zzz"], "test.csv", "data.id_column")


def test_blank_lines_are_not_counted_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n\n1,2\n\n1,2,3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"row 2 \(line 5\) has 3 cells"):
        read_table(path)
    path.write_text("a,b\n\n\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no rows"):
        read_table(path)


@pytest.mark.parametrize("name", ["a\0b.csv", "x" * 300 + ".csv", "folder.csv"], ids=["NUL", "long", "folder"])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"does not exist|is not a file"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("text", [b'{"text": "\x80"}\n', b'{"text": "\\ud800"}\n'], ids=["byte", "surrogate"])
def test_json_that_is_no_text_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + text)
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read as jsonl"):
        read_table(path)


@pytest.mark.parametrize(
    "text",
    [b'{"b": [[' + b"[" * 50_000, b'{"a": ' * 50_000, b'{"b":' + b"[\n" * 50_000, b'{"b":' + b'["]",\n' * 50_000],
    ids=["arrays", "objects", "lines", "strings"],
)
def test_json_that_is_nested_without_end_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "[[{ \\" ["}\n' + text)
    with pytest.raises(UserError, match=r"a\.jsonl, line \d+: values are nested more than 100 deep"):
        read_table(path)


@pytest.mark.parametrize("row", [b"null", b"[]", b"1", b'"text"'])
def test_a_row_that_is_no_object_is_refused(tmp_path: Path, row: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + row + b'\n{"text": "good"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 3 is not an object"):
        read_table(path)


@pytest.mark.parametrize("row", [b"null", b"[1]", b"1", b'"te]xt"'])
@pytest.mark.parametrize("form", [b'[%s,{"text": 1}]', b'[\n{"text": 1},\n%s]', b'[{"text": 1},\n%s\n, {"text": 2}]'])
def test_a_row_of_a_list_that_is_no_object_is_refused(tmp_path: Path, form: bytes, row: bytes) -> None:
    # Some of them end the process of the reader.
    path = tmp_path / "a.json"
    path.write_bytes(form % row)
    with pytest.raises(UserError, match=r"a\.json, line [123]: a row is not an object"):
        read_table(path)


def test_json_may_be_one_list_of_rows_or_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[\n{"text": "one"},\n{"text": "]"}\n]')
    assert read_table(path)["text"][:] == ["one", "]"]
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert read_table(path)["text"][:] == ["one"]
