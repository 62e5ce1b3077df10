from __future__ import annotations

import datetime
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from llmcls.common.user_error import UserError
from llmcls.data.tables import read_table
from llmcls.data.workbooks import text_of


def save(path: Path, *sheets: list[list[Any]]) -> Path:
    book = pytest.importorskip("openpyxl").Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"sheet {number}")
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_cells_become_text_as_in_a_csv_and_what_a_sheet_leaves_behind_is_dropped(
    tmp_path: Path, log_lines: list[str]
) -> None:
    rows = [["id", "text", None, "day", None], [1.0, None, "x", datetime.date(2026, 1, 2), None], [None, " a "], [None]]
    path = save(tmp_path / "a.xlsx", [], rows, [["other"], ["1"]])
    assert read_table(path).to_list() == [
        {"id": "1", "text": "", "unnamed_3": "x", "day": "2026-01-02"},
        {"id": "", "text": " a ", "unnamed_3": "", "day": ""},
    ]
    assert any("2 sheets have cells; only the first one, 'sheet 1', is read" in line for line in log_lines)


def test_a_changed_workbook_is_read_again(tmp_path: Path) -> None:
    for text in ("one", "two"):
        assert read_table(save(tmp_path / "a.xlsx", [["text"], [text]]))["text"][:] == [text]


@pytest.mark.parametrize(
    "rows, sentence",
    [([], "is empty; the first row"), ([["a"]], "has no rows"), ([["a", "a"], [1, 2]], "has the column 'a' twice")],
)
def test_a_workbook_without_a_table_is_refused(tmp_path: Path, rows: list[list[Any]], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_table(save(tmp_path / "a.xlsx", rows))


def test_a_missing_library_and_a_damaged_workbook_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04")
    if importlib.util.find_spec("openpyxl"):
        with pytest.raises(UserError, match="is not an Excel workbook that can be read"):
            read_table(tmp_path / "a.xlsx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs openpyxl \(pip install openpyxl\); or save it as CSV"):
        read_table(tmp_path / "a.xlsx")


def test_numbers_have_no_needless_point() -> None:
    assert [text_of(cell) for cell in (3.0, 2.5, 7, False, datetime.datetime(2026, 1, 2, 3))] == [
        "3", "2.5", "7", "0", "2026-01-02T03:00:00",
    ]  # fmt: skip
