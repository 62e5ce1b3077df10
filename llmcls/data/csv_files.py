"""CSV and TSV files: encoding, separator and header are found, and every row is checked before it is read."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from llmcls.common.user_error import UserError
from llmcls.data.csv_encoding import find_encoding
from llmcls.recipe.schema import DataSection

SEPARATORS = (",", ";", "\t", "|")
# What the separator is found on.
_HEAD_CHARACTERS = 1 << 20
_HEAD_ROWS = 1000
# Excel's own way to name the separator, above the header.
_EXCEL_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
_FOREIGN = {
    b"PK\x03\x04": "an Excel workbook or a zip archive; rename it to .xlsx, or unpack it",
    b"\x1f\x8b": "compressed (gzip); unpack it",
    b"PAR1": "a Parquet file; rename it to .parquet",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as .xlsx or as CSV UTF-8",
    b"{\\rtf": "a rich text document; save it as CSV UTF-8",
    b"<!DOCTYPE": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"<table": "a web page; save it as CSV UTF-8",
    b"version https://git-lfs": "only a pointer of Git LFS; run `git lfs pull`",
}


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file is written.

    Attributes
    ----------
    encoding : str
    separator : str
    header : tuple of str
        The names of the columns, all different.
    lines_before : int
        Lines above the header that are no part of the table.
    spaces : bool
        Whether a space follows each separator, as in ``a, b``.
    """

    encoding: str
    separator: str
    header: tuple[str, ...]
    lines_before: int = 0
    spaces: bool = False

    def rows(self, path: Path, strict: bool) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each row below the header; an empty list is a blank line."""
        with path.open(encoding=self.encoding, newline="") as file:
            for _ in range(self.lines_before):
                file.readline()
            reader = csv.reader(file, delimiter=self.separator, skipinitialspace=self.spaces, strict=strict)
            last = 0
            try:
                for _ in itertools.dropwhile(lambda cells: not cells, reader):
                    break
                last = reader.line_num
                for cells in reader:
                    last = reader.line_num
                    yield last + self.lines_before, cells
            except csv.Error as error:
                line = last + 1 if "unexpected end" in str(error) else reader.line_num
                raise _BadRow(line + self.lines_before, str(error)) from None

    def options(self) -> dict[str, Any]:
        """The arguments of the reader of `datasets`."""
        return {
            "sep": self.separator,
            "encoding": self.encoding,
            "names": list(self.header),
            "header": 0,
            "skiprows": self.lines_before or None,
            "skipinitialspace": self.spaces,
            "keep_default_na": False,
            "na_filter": False,
            "features": datasets.Features({c: datasets.Value("string") for c in self.header}),
        }


class _BadRow(Exception):
    """A line that the csv module cannot read: its number, and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


def find_format(path: Path, key: str, data: DataSection | None = None, insist: bool = True) -> CsvFormat:
    """How a CSV file is written: as the recipe says, or as its first rows tell.

    Parameters
    ----------
    path : Path
    key : str
        The recipe key or option that names the file, for error messages.
    data : DataSection, optional
        Its ``csv_separator`` and ``encoding``.
    insist : bool
        Whether they must hold, or are only tried first.

    Raises
    ------
    UserError
        If the file is no text, cannot be decoded, or has no usable header.

    Notes
    -----
    The separator is the one that gives every one of the first rows as many cells as the header; of several, the one
    with the most columns. Where none does, a row is damaged, or there is one column: the one with the longest header.
    """
    csv.field_size_limit(2**31 - 1)
    with path.open("rb") as binary:
        start = binary.read(64)
    for mark, what in _FOREIGN.items():
        if start.lstrip().lower().startswith(mark.lower()):
            raise UserError(f"{key}: {path} is not a CSV file but {what}")
    encoding = find_encoding(path, key, None if data is None else data.encoding, insist)
    with path.open(encoding=encoding, newline="") as file:
        text = file.read(_HEAD_CHARACTERS)
        complete = not file.read(1)
    excel = _EXCEL_LINE.match(text)
    if excel:
        text = text[excel.end() :]
    given = None if data is None or data.csv_separator is None else separator_of(data.csv_separator)
    separator = given or (excel[1] if excel else _separator(text, complete, "\t" if _is_tsv(path) else ","))
    header = next(_records(text, separator), None)
    if header is None or not any(cell.strip() for cell in header):
        raise UserError(f"{key}: {path} is empty; its first line must name the columns")
    if given and len(header) == 1:
        found = _separator(text, complete, given)
        if found != given and not insist:
            separator = found
            header = next(_records(text, separator))
        elif found != given:
            raise UserError(
                f"{key}: the header of {path} has no {given!r}, which data.csv_separator names; "
                f"set data.csv_separator={found!r}, or leave it out"
            )
    spaces = len(header) > 1 and all(cell.startswith(" ") for cell in header[1:])
    names = _names([cell.lstrip() for cell in header] if spaces else header)
    duplicates = sorted(column for column, times in Counter(names).items() if times > 1)
    if duplicates:
        raise UserError(f"{key}: {path} has the column {duplicates[0]!r} twice; rename one of them")
    return CsvFormat(encoding, separator, tuple(names), 1 if excel else 0, spaces)


def separator_of(written: str) -> str:
    r"""The character that a recipe means.

    Examples
    --------
    >>> separator_of("tab"), separator_of(r"\t"), separator_of(";")
    ('\t', '\t', ';')
    """
    return "\t" if written in ("tab", r"\t") else written


def check_rows(path: Path, form: CsvFormat, key: str) -> int:
    """Check that every row has as many cells as the header.

    pandas fills short rows with missing values and can drop the end of long rows. Either could assign a label to the
    wrong column without an error.

    Returns
    -------
    The number of rows, without empty ones at the end, which spreadsheets leave.

    Raises
    ------
    UserError
        At the first row that differs, or if there are no rows.
    """
    try:
        return _count(path, form, key, strict=True)
    except _BadRow as bad:
        if "unexpected end of data" in bad.reason:
            raise UserError(
                f"{key}: {path}, line {bad.line}: a text that begins with a quote does not end; close it"
            ) from None
        if r"\"" in _line(path, form.encoding, bad.line):
            raise UserError(
                f'{key}: {path}, line {bad.line}: a quote in a text is written \\"; CSV doubles it: "" '
                "(Spark: option escape='\"'; pandas: leave escapechar out)"
            ) from None
    try:
        return _count(path, form, key, strict=False)
    except _BadRow as bad:
        raise UserError(f"{key}: {path}, line {bad.line}: {bad.reason}; correct that line") from None


def _count(path: Path, form: CsvFormat, key: str, strict: bool) -> int:
    """The rows up to the last that is not empty."""
    width, rows, last = len(form.header), 0, 0
    for line, cells in form.rows(path, strict):
        # Blank lines are not rows, and the header is row 0.
        if not cells:
            continue
        rows += 1
        if len(cells) != width and "\0" in "".join(cells):
            raise UserError(f"{key}: {path}, line {line} has NUL characters; the file is damaged: remove that line")
        if len(cells) != width:
            # R writes row names without a name for their column.
            names = "name every column (R: row.names=FALSE), or " if (rows, len(cells)) == (1, width + 1) else ""
            raise UserError(
                f"{key}: {path}, row {rows} (line {line}) has {len(cells)} cells, "
                f"the header has {width}; {names}quote texts that contain separators or line breaks"
            )
        if any(cells):
            last = rows
    if last < 1:
        raise UserError(f"{key}: {path} has no rows; add at least one row below the header")
    return last


def _separator(text: str, complete: bool, usual: str) -> str:
    """The separator that explains the first rows best; see `find_format`."""
    best, best_score = usual, (False, 0, True)
    for candidate in SEPARATORS:
        rows = list(itertools.islice(_records(text, candidate), _HEAD_ROWS))
        if not complete and len(rows) < _HEAD_ROWS:
            # The last one may be cut.
            rows = rows[:-1]
        if not rows or len(rows[0]) < 2:
            continue
        same = all(len(row) == len(rows[0]) for row in rows)
        score = (same, len(rows[0]), candidate == usual)
        if score > best_score:
            best, best_score = candidate, score
    return best


def _records(text: str, separator: str) -> Iterator[list[str]]:
    """The records of a text, without blank lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        yield from filter(None, reader)
    except csv.Error:
        return


def _names(header: list[str]) -> list[str]:
    """The header with names for columns without one, of which spreadsheets leave several at the right."""
    if header.count("") < 2:
        return header
    return [name or f"unnamed_{number}" for number, name in enumerate(header, 1)]


def _is_tsv(path: Path) -> bool:
    return path.suffix.lower() == ".tsv"


def _line(path: Path, encoding: str, number: int) -> str:
    """A line of a file, by its number from 1."""
    with path.open(encoding=encoding, newline="") as file:
        return next(itertools.islice(file, number - 1, None), "")
