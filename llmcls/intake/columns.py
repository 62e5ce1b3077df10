"""What the columns of a table seem to be: texts, labels, or ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow.compute as pc

from llmcls.data.label_cells import TRUTH, are_lists, list_items, separator_in
from llmcls.data.tables import cell_text, column_texts

# Rows that are looked at; ids and labels are looked up in all.
SAMPLE = 2000
# Most classes that a column whose name says nothing can have, and most for each row.
MOST_CLASSES, MOST_SHARE = 200, 0.2
_LABEL_NAMES = re.compile(
    r"(.*[ _-])?(labels?|class|classes|category|categories|target|topics?|tags?|intents?|emotions?|sentiments?|genres?"
    r"|ratings?|stars|y|kategorien?|klassen?|etiquettes?|etiquetas?|spam)([ _-](name|id|str))?",
    re.IGNORECASE,
)
_TEXT_NAMES = re.compile(
    r"(.*[ _-])?(text|title|body|content|message|comment|description|sentence|review|question|abstract|summary|tweet"
    r"|document|utterance|query|headline|email|subject|nachricht|texte)s?",
    re.IGNORECASE,
)
_ID_NAMES = re.compile(r"(.*[ _-])?(id|uid|uuid|guid|key|index|nr|no|number)|unnamed.*|", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """A column by what its first cells look like.

    Attributes
    ----------
    name : str
    kind : str
        "text", "names" (few different values), "truth" (0 and 1), "lists", "other" or "empty".
    distinct : int
        Different cells in the sample, without empty ones.
    words : float
        Words of a cell, on average.
    """

    name: str
    kind: str
    distinct: int
    words: float


def look_at(table: datasets.Dataset) -> list[Column]:
    """What each column of a table looks like."""
    sample = table[: min(len(table), SAMPLE)]
    return [_look(name, [cell_text(cell).strip() for cell in cells]) for name, cells in sample.items()]


def _look(name: str, cells: list[str]) -> Column:
    filled = [cell for cell in cells if cell]
    distinct = set(filled)
    words = float(np.mean([len(cell.split()) for cell in filled])) if filled else 0.0
    named = _TEXT_NAMES.fullmatch(name) is not None and not all(map(_is_number, distinct))
    long = words >= 3 and separator_in(distinct) is None
    if not filled:
        kind = "empty"
    elif distinct <= set(TRUTH):
        kind = "truth"
    elif are_lists(distinct):
        kind = "lists"
    elif len(distinct) > (0.3 if named else 0.5) * len(filled) and (named or long):
        kind = "text"
    elif _few(distinct, len(filled)) or _LABEL_NAMES.fullmatch(name):
        kind = "names"
    else:
        kind = "other"
    return Column(name, kind, len(distinct), words)


def _few(distinct: set[str], rows: int) -> bool:
    """Whether so many different values can be classes, alone or several in a cell."""
    separator = separator_in(distinct)
    names = {name.strip() for cell in distinct for name in cell.split(separator)} if separator else distinct
    return 2 <= len(names) <= min(MOST_CLASSES, max(2, MOST_SHARE * rows))


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?\d+([.,]\d+)?", cell) is not None


def text_columns(columns: Iterable[Column]) -> list[str]:
    """The columns that are texts, in the order of the table."""
    return [column.name for column in columns if column.kind == "text"]


def label_columns(columns: Iterable[Column]) -> list[list[str]]:
    """What the label columns may be, the most likely first: several 0/1 columns together, or one column.

    A column whose name says that it holds labels excludes those whose names do not.
    """
    found = [column for column in columns if column.kind in ("names", "truth", "lists")]
    truth = [column.name for column in found if column.kind == "truth"]
    named = [[c.name] for c in found if _LABEL_NAMES.fullmatch(c.name)]
    together = [truth] if len(truth) > 1 else []
    if named and not (together and len(named) > 1):
        return named
    single = [[c.name] for c in found if c.kind != "truth" or not together]
    return together or [[c.name] for c in found if c.kind == "lists"] or single


def id_column(table: datasets.Dataset, columns: Iterable[Column], used: Iterable[str]) -> str | None:
    """A column of different values for all rows whose name says that it holds ids; None if there is none."""
    for column in columns:
        if column.name in set(used) or not column.name or not _ID_NAMES.fullmatch(column.name):
            continue
        cells = column_texts(table, column.name)
        if cells.null_count == 0 and pc.count_distinct(cells).as_py() == len(table) and column.words <= 1.5:
            return column.name
    return None


@dataclass(frozen=True)
class LabelForm:
    """How the labels are written, and the task that follows.

    Attributes
    ----------
    problem_type : str
    separator : str, optional
        For ``data.label_separator``.
    names : list of str
        The labels.
    reason : str
        In words.
    """

    problem_type: str
    separator: str | None
    names: list[str]
    reason: str


def label_form(table: datasets.Dataset, columns: list[str]) -> LabelForm:
    """How the labels in these columns are written."""
    if len(columns) > 1:
        return LabelForm("multi_label_classification", None, columns, "a column of 0 and 1 for each label")
    values = sorted({cell_text(v).strip() for v in column_texts(table, columns[0]).unique().to_pylist()} - {""})
    if are_lists(values):
        items = [list_items(value) or () for value in values]
        names = sorted({name for found in items for name in found})
        if all(len(found) == 1 for found in items):
            return LabelForm("single_label_classification", None, names, "lists of one label each")
        return LabelForm("multi_label_classification", None, names, "the labels of a row are a list")
    if set(values) <= set(TRUTH):
        return LabelForm("binary_classification", None, [f"not_{columns[0]}", columns[0]], "one column of 0 and 1")
    separator = separator_in(values)
    names = sorted({part.strip() for value in values for part in value.split(separator or "\0")} - {""})
    if separator is not None and len(names) < len(values):
        return LabelForm(
            "multi_label_classification", separator, names, f"the labels of a row are separated by {separator!r}"
        )
    if len(values) == 2:
        return LabelForm(
            "binary_classification", None, values, f"two classes, of which {values[1]!r} is the positive one"
        )
    return LabelForm("single_label_classification", None, values, "one class for each row")
