"""Excel workbooks (.xlsx), through openpyxl, which is an optional dependency."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import logging
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from llmcls.common.user_error import UserError

log = logging.getLogger(__name__)


def read_workbook(path: Path, key: str) -> datasets.Dataset:
    """Read the first sheet of a workbook that has rows. Every cell becomes text, as it does in a CSV file.

    Parameters
    ----------
    path : Path
    key : str
        The recipe key or option that names the file, for error messages.

    Returns
    -------
    datasets.Dataset
        Memory-mapped.

    Raises
    ------
    UserError
        If openpyxl is missing, the file is no workbook, its header is not usable, or it has no rows.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise UserError(
            f"{key}: {path} is an Excel workbook, which needs openpyxl (pip install openpyxl); or save it as CSV UTF-8"
        )
    try:
        header, name, rows = _look(path)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{key}: {path} is not an Excel workbook that can be read ({reason}); save it again") from error
    if not header:
        raise UserError(f"{key}: {path} is empty; the first row of its first sheet must name the columns")
    duplicates = sorted(column for column, times in Counter(header).items() if times > 1)
    if duplicates:
        raise UserError(f"{key}: {path} has the column {duplicates[0]!r} twice; rename one of them")
    if rows == 0:
        raise UserError(f"{key}: {path} has no rows; add at least one row below the header")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A tuple, because lists are taken for shards. The digest is an argument so that the cache of an older file is not
    # used.
    arguments = {"path": str(path), "sheet": name, "header": tuple(header), "rows": rows, "digest": digest}
    features = datasets.Features({column: datasets.Value("string") for column in header})
    return datasets.Dataset.from_generator(_rows, features=features, gen_kwargs=arguments)


def _look(path: Path) -> tuple[list[str], str, int]:
    """Header, sheet and number of rows, without empty ones at the end."""
    import openpyxl

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    filled = []
    for sheet in book.worksheets:
        first = next(sheet.iter_rows(values_only=True), ())
        if any(cell is not None for cell in first):
            filled.append(sheet)
    if not filled:
        return [], "", 0
    sheet = filled[0]
    if len(filled) > 1:
        log.warning("%s: %d sheets have cells; only the first one, %r, is read", path, len(filled), sheet.title)
    cells = [text_of(cell).strip() for cell in next(sheet.iter_rows(values_only=True))]
    while cells and not cells[-1]:
        cells.pop()
    header = [cell or f"unnamed_{number}" for number, cell in enumerate(cells, 1)]
    last = 0
    for number, row in enumerate(sheet.iter_rows(min_row=2, values_only=True), 1):
        if any(cell is not None for cell in row[: len(header)]):
            last = number
    title = sheet.title
    book.close()
    return header, title, last


def _rows(path: str, sheet: str, header: tuple[str, ...], rows: int, digest: str) -> Iterator[dict[str, str]]:
    """The rows of a sheet as text."""
    import openpyxl

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    for row in book[sheet].iter_rows(min_row=2, max_row=rows + 1, values_only=True):
        cells = [text_of(cell) for cell in row[: len(header)]]
        yield dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))
    book.close()


def text_of(cell: Any) -> str:
    """A cell of a sheet as text: whole numbers without a point, truth as 0 or 1, dates as ISO 8601.

    Examples
    --------
    >>> text_of(1.0), text_of(True), text_of(None), text_of("007")
    ('1', '1', '', '007')
    """
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    return cell.isoformat() if isinstance(cell, datetime.date | datetime.time) else str(cell)
