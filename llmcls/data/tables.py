"""Tables: CSV, TSV, JSONL and Parquet files, read memory-mapped through `datasets` and checked on the way.

Every cell of a CSV is read as text: ids keep their leading zeros, and a text "NA" stays a text.
"""

from __future__ import annotations

import csv
import difflib
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from llmcls.common.user_error import UserError


def read_table(path: str | Path, key: str = "data") -> datasets.Dataset:
    """Read a CSV, TSV, JSONL or Parquet file, chosen by its extension, memory-mapped.

    Raises
    ------
    UserError: no such file, an extension that is not known, a file that cannot be parsed, no rows.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; {path.parent} has {near[0]}" if near else ""
        raise UserError(f"{key}: {path} is not there{hint}; check the path (it is relative to where you are)")
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
    if builder == "csv":
        _check_csv_widths(path, separator, len(columns), key)
    try:
        table = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except Exception as error:
        cause = error.__cause__ or error
        raise UserError(f"{key}: {path} cannot be read as {path.suffix[1:]}: {_one_line(cause)}") from error
    if len(table) == 0:
        raise _no_rows(path, key)
    return table


def _no_rows(path: Path, key: str) -> UserError:
    return UserError(f"{key}: {path} has no rows; give it at least one row below the header")


def _csv_header(path: Path, separator: str, key: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=separator), None)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, key, error) from None
    if not header:
        raise UserError(f"{key}: {path} is empty; its first line must name the columns")
    doubled = sorted({c for c in header if header.count(c) > 1})
    if doubled:
        raise UserError(f"{key}: {path} has the column {doubled[0]!r} twice; rename one")
    return header


def _check_csv_widths(path: Path, separator: str, width: int, key: str) -> None:
    """Stop at the first row with more or fewer cells than the header, and when there is no row.

    pandas fills short rows with nothing and drops a long row's tail under some settings; either would
    shift a label silently, so the file is walked once here.
    """
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator)
            number = 0
            for number, cells in enumerate(reader):
                if len(cells) != width and cells:
                    raise UserError(
                        f"{key}: {path}, row {number} (line {reader.line_num}) has {len(cells)} cells, "
                        f"the header has {width}; quote texts that hold separators or line ends"
                    )
            if number == 0:
                raise _no_rows(path, key)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, key, error) from None
    except csv.Error as error:
        raise UserError(f"{key}: {path}, line {reader.line_num}: {error}; repair that line") from None


def _not_utf8(path: Path, key: str, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{key}: {path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8")


def require_columns(table: datasets.Dataset, columns: list[str], path: str, key: str) -> None:
    """Raise a `UserError` naming the first of ``columns`` that the table lacks, and the nearest it has."""
    for column in columns:
        if column not in table.column_names:
            near = difflib.get_close_matches(column, table.column_names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(table.column_names[:30])}"
            raise UserError(f"{path} has no column {column!r} ({key}); {hint}")


def cell_text(value: Any) -> str:
    """A cell as text; nothing as the empty text."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return value if isinstance(value, str) else str(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
