"""Reading tables: CSV, TSV, JSONL and Parquet files, checked and memory-mapped through `datasets`.

Every cell of a CSV or TSV file is read as text, so ids keep leading zeros, and the text "NA" is not a missing value.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from llmcls.common.nearest import nearest
from llmcls.common.user_error import UserError

DEEPEST_JSON = 100
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(rb"[\[\]{}]")


def read_table(path: str | Path, key: str = "data") -> datasets.Dataset:
    """Read a CSV, TSV, JSONL or Parquet file. The extension decides the format.

    Parameters
    ----------
    path : str or Path
    key : str
        The recipe key or command line option that names the file, for error messages.

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
        raise UserError(f"{key}: {path} {problem}{hint}; check the path (relative to the current folder)")
    kind = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
    builder = kind.get(path.suffix.lower())
    if builder is None:
        raise UserError(f"{key}: {path} has the extension {path.suffix!r}; use one of {', '.join(kind)}")
    options: dict[str, Any] = {}
    if builder == "csv":
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        columns = _csv_header(path, separator, key)
        options = {
            "sep": separator,
            "encoding": "utf-8-sig",
            "keep_default_na": False,
            "na_filter": False,
            "features": datasets.Features({c: datasets.Value("string") for c in columns}),
        }
        _check_csv_widths(path, separator, len(columns), key)
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
        raise _no_rows(path, key)
    return table


def _no_rows(path: Path, key: str) -> UserError:
    return UserError(f"{key}: {path} has no rows; add at least one row below the header")


def _csv_header(path: Path, separator: str, key: str) -> list[str]:
    """The column names of a CSV file, which must be unique."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=separator), None)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, key, error) from None
    if not header:
        raise UserError(f"{key}: {path} is empty; its first line must name the columns")
    duplicates = sorted(column for column, times in Counter(header).items() if times > 1)
    if duplicates:
        raise UserError(f"{key}: {path} has the column {duplicates[0]!r} twice; rename one of them")
    return header


def _check_csv_widths(path: Path, separator: str, width: int, key: str) -> None:
    """Raise a `UserError` at the first row with more or fewer cells than the header, or if the file has no rows.

    pandas fills short rows with missing values and can drop the end of long rows. Either could assign a label to the
    wrong column without an error.
    """
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator)
            # Blank lines are not rows, and the header is row 0.
            number = -1
            for cells in reader:
                number += bool(cells)
                if len(cells) != width and cells:
                    raise UserError(
                        f"{key}: {path}, row {number} (line {reader.line_num}) has {len(cells)} cells, "
                        f"the header has {width}; quote texts that contain separators or line breaks"
                    )
            if number < 1:
                raise _no_rows(path, key)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, key, error) from None
    except csv.Error as error:
        raise UserError(f"{key}: {path}, line {reader.line_num}: {error}; correct that line") from None


def _check_json_rows(path: Path, key: str) -> None:
    """Raise a `UserError` at what ends the process of the reader: a row that is no object, or nested without end."""
    depth, whole = 0, None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.lstrip(b"\xef\xbb\xbf" if number == 1 else None).lstrip()
            # A file that begins with a bracket is one list of rows, and not a row in each line.
            whole = text.startswith(b"[") if whole is None and text else whole
            if text and depth == 0 and not whole and not text.startswith(b"{"):
                raise UserError(f'{key}: {path}, line {number} is not an object; write {{"column": value, ...}}')
            for bracket in _BRACKET.findall(_JSON_STRING.sub(b"", text)):
                depth += 1 if bracket in b"[{" else -1
                if depth > DEEPEST_JSON:
                    raise UserError(f"{key}: {path}, line {number}: values are nested more than {DEEPEST_JSON} deep")


def _not_utf8(path: Path, key: str, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{key}: {path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8")


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
            raise UserError(f"{path} has no column {column!r} ({key}); {hint}")


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
