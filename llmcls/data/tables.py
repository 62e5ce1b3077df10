"""Reading tables: CSV, TSV, Excel, JSONL and Parquet files, checked and memory-mapped through `datasets`.

Every cell of a CSV, TSV or Excel file is read as text, so ids keep leading zeros, and the text "NA" is not a
missing value.
"""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from llmcls.common.nearest import nearest
from llmcls.common.user_error import UserError
from llmcls.data.csv_files import check_rows, find_format
from llmcls.data.workbooks import read_workbook
from llmcls.recipe.schema import DataSection

DEEPEST_JSON = 100
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_KINDS = {
    ".csv": "csv", ".tsv": "csv", ".xlsx": "excel", ".xlsm": "excel", ".jsonl": "json", ".json": "json",
    ".parquet": "parquet",
}  # fmt: skip
_OLD_WORKBOOKS = {".xls", ".xlsb", ".ods", ".numbers"}
_BRACKET = re.compile(rb"[\[\]{}]")


def read_table(
    path: str | Path, key: str = "data", data: DataSection | None = None, insist: bool = True
) -> datasets.Dataset:
    """Read a CSV, TSV, Excel, JSONL or Parquet file. The extension decides the format.

    Parameters
    ----------
    path : str or Path
    key : str
        The recipe key or command line option that names the file, for error messages.
    data : DataSection, optional
        Its ``csv_separator`` and ``encoding`` say how a CSV file is written. Without them, the file tells.
    insist : bool
        Whether the file must be written so. A table for prediction can be written otherwise than those of the recipe.

    Returns
    -------
    datasets.Dataset
        Memory-mapped.

    Raises
    ------
    UserError
        If the file does not exist, has an unknown extension, cannot be parsed, or has no rows.
    """
    path = Path(path)
    if not os.path.isfile(path):
        others = [p.name for p in path.parent.iterdir()] if os.path.isdir(path.parent) else []
        near = nearest(path.name, others)
        hint = f"; {path.parent} has {near}" if near else ""
        problem = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(
            f"{key}: {path} {problem}{hint}; a relative path begins in the current folder or beside the recipe"
        )
    builder = _KINDS.get(path.suffix.lower())
    if path.suffix.lower() in _OLD_WORKBOOKS:
        raise UserError(f"{key}: {path} is a workbook of a kind that is not read; save it as .xlsx or as CSV UTF-8")
    if builder is None:
        raise UserError(f"{key}: {path} has the extension {path.suffix!r}; use one of {', '.join(_KINDS)}")
    if builder == "excel":
        return read_workbook(path, key)
    options: dict[str, Any] = {}
    rows = None
    if builder == "csv":
        form = find_format(path, key, data, insist)
        rows = check_rows(path, form, key)
        options = form.options()
    elif builder == "json":
        _check_json_rows(path, key)
    try:
        table = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
        if builder != "csv":
            # Their readers take bytes that are not UTF-8 for text, which fails where the text is used.
            table.data.validate(full=True)
    except Exception as error:
        cause = error.__cause__ or error
        raise UserError(f"{key}: {path} cannot be read as {path.suffix[1:]}: {_one_line(cause)}") from error
    if len(table) == 0:
        raise UserError(f"{key}: {path} has no rows; add at least one row below the header")
    if builder == "json" and len(table) == 1 and all(pa.types.is_struct(kind) for kind in table.data.schema.types):
        raise UserError(
            f"{key}: {path} is one object of columns, as pandas writes it; write one object per row: "
            "to_json(orient='records', lines=True)"
        )
    return table if rows is None or rows == len(table) else table.select(range(rows))


def _check_json_rows(path: Path, key: str) -> None:
    """Raise a `UserError` at what ends the process of the reader: a row that is no object, or nested without end."""
    depth, whole = 0, None
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{key}: {path} is UTF-16; JSON is UTF-8: save it as UTF-8")
        file.seek(0)
        for number, line in enumerate(file, 1):
            text = line.lstrip(b"\xef\xbb\xbf" if number == 1 else None).lstrip()
            # A file that begins with a bracket is one list of rows, and not a row in each line.
            whole = text.startswith(b"[") if whole is None and text else whole
            if text and depth == 0 and not whole and not text.startswith(b"{"):
                raise UserError(f'{key}: {path}, line {number} is not an object; write {{"column": value, ...}}')
            # Brackets inside a string do not count.
            plain, end, odd = _JSON_STRING.sub(b"0", text), 0, False
            for bracket in _BRACKET.finditer(plain):
                odd |= depth == 1 and (bracket[0] == b"[" or _holds_value(plain[end : bracket.start()]))
                depth, end = depth + (1 if bracket[0] in b"[{" else -1), bracket.end()
                if depth > DEEPEST_JSON:
                    raise UserError(f"{key}: {path}, line {number}: values are nested more than {DEEPEST_JSON} deep")
            if whole and (odd or (depth == 1 and _holds_value(plain[end:]))):
                raise UserError(f'{key}: {path}, line {number}: a row is not an object; write {{"column": value, ...}}')


def _holds_value(between: bytes) -> bool:
    """Whether there is a value between two brackets of JSON, and not only commas and white space."""
    return bool(between.strip(b", \t\r\n"))


def require_columns(table: datasets.Dataset, columns: list[str], path: str, key: str) -> None:
    """Check that a table has the columns that a recipe names.

    Parameters
    ----------
    table : datasets.Dataset
    columns : list of str
    path, key : str
        The file and the recipe key, for the error message.

    Raises
    ------
    UserError
        If a column is missing. The message suggests the most similar column of the table.
    """
    for column in columns:
        if column not in table.column_names:
            near = nearest(column, table.column_names)
            hint = f"did you mean {near!r}?" if near else f"it has {', '.join(table.column_names[:15])}"
            if not near and looks_like_row(table.column_names):
                hint = (
                    f"its first line looks like a row ({table.column_names[-1][:40]!r}); add a line with column names"
                )
            raise UserError(f"{path} has no column {column!r} ({key}); {hint}")


def looks_like_row(names: list[str]) -> bool:
    """Whether the names of columns look like the cells of a row, because a file has no header line.

    Examples
    --------
    >>> looks_like_row(["0", "I am so happy about the new phone!"]), looks_like_row(["id", "text of the message"])
    (True, False)
    """
    return any(len(name.split()) > 5 or len(name) > 80 for name in names)


def cell_text(value: Any) -> str:
    """A cell as text. A missing value is the empty text.

    Examples
    --------
    >>> cell_text(7), cell_text(None), cell_text(float("nan"))
    ('7', '', '')
    """
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return value if isinstance(value, str) else str(value)


def column_texts(table: datasets.Dataset, column: str) -> pa.ChunkedArray:
    """A column as text, or as the numbers that it holds, for `pyarrow.compute`.

    JSONL files can hold numbers and texts in one column, or lists and objects, which have no functions there.
    """
    values = table.data.column(column)
    if pa.types.is_nested(values.type) or isinstance(values.type, pa.BaseExtensionType):
        cells = table[column]
        return pa.chunked_array([[None if cell is None else cell_text(cell) for cell in cells]], type=pa.string())
    return values


def _one_line(error: BaseException) -> str:
    """The message of an exception on one line, cut so that error messages stay short."""
    return " ".join(str(error).split())[:200] or type(error).__name__
