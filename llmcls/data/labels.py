"""Labels: their names, how a table's cells say which hold, and which imply others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from llmcls.common.user_error import UserError
from llmcls.data.tables import cell_text, require_columns
from llmcls.recipe.schema import Recipe

_TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "False": 0.0, "True": 1.0, "false": 0.0, "true": 1.0}


@dataclass
class LabelSpace:
    """The labels of a recipe: one output of the head each.

    names: label names, in the order of the head's outputs.
    columns: the columns of the table they are read from.
    problem_type: as in the recipe.
    class_values: for single-label and binary, the cell value of each class; None for multi-label.
    separator: between the labels of a cell, where one column holds them all.
    hierarchy: between the parts of a label that is a path; a label then implies its ancestors.
    """

    names: list[str]
    columns: list[str]
    problem_type: str
    class_values: list[str] | None = None
    separator: str | None = None
    hierarchy: str | None = None

    @property
    def multi_label(self) -> bool:
        """Whether any number of labels may hold at once."""
        return self.problem_type == "multi_label_classification"

    def ancestors(self) -> list[list[int]]:
        """For each label, the numbers of the labels it implies."""
        if self.hierarchy is None:
            return [[] for _ in self.names]
        number = {name: i for i, name in enumerate(self.names)}
        return [[number[a] for a in _ancestor_names(name, self.hierarchy) if a in number] for name in self.names]


def add_ancestors(marks: np.ndarray, labels: LabelSpace) -> np.ndarray:
    """``marks`` [rows, labels] with every ancestor of a marked label marked too."""
    closed = marks.copy()
    for label, above in enumerate(labels.ancestors()):
        for ancestor in above:
            closed[:, ancestor] = np.maximum(closed[:, ancestor], marks[:, label])
    return closed


def count_positives(values: np.ndarray, labels: LabelSpace) -> np.ndarray:
    """int64 [labels]: rows that have each label, of label values as a `Split` holds them."""
    if labels.multi_label:
        return values.sum(0).astype(np.int64)
    return np.bincount(values, minlength=len(labels.names))


def multi_hot(values: np.ndarray, count: int) -> np.ndarray:
    """Label values as one mark per label.

    Parameters
    ----------
    values : float32 [rows, labels] or int64 [rows]
        0/1 marks, or class numbers.
    count : int
        Number of labels.

    Returns
    -------
    bool [rows, labels]

    Examples
    --------
    >>> multi_hot(np.array([2, 0]), 3)
    array([[False, False,  True],
           [ True, False, False]])
    """
    return values.astype(bool) if values.ndim == 2 else np.arange(count) == values[:, None]


def multi_hot_of_lists(numbers: list[list[int]], count: int) -> np.ndarray:
    """Lists of label numbers as one mark per label.

    Parameters
    ----------
    numbers : list of rows, each a list of label numbers, maybe empty
    count : int
        Number of labels.

    Returns
    -------
    bool [rows, labels]
    """
    marks = np.zeros((len(numbers), count), dtype=bool)
    for row, chosen in enumerate(numbers):
        marks[row, chosen] = True
    return marks


def label_space(recipe: Recipe, train: datasets.Dataset) -> LabelSpace:
    """Names of the head's outputs, read from the recipe and, for classes and delimited labels, the training file.

    Raises
    ------
    UserError: a column is missing, a class is empty, there are too few or too many.
    """
    columns, kind = recipe.data.label_columns, recipe.model.problem_type
    separator, hierarchy = recipe.data.label_separator, recipe.data.hierarchy_separator
    path, column = recipe.data.train_csv, columns[0]
    if kind == "multi_label_classification" and separator is None:
        return LabelSpace(list(columns), list(columns), kind, hierarchy=hierarchy)
    require_columns(train, [column], path, "data.label_columns")
    values = sorted({cell_text(v) for v in train.unique(column)})
    if separator is not None:
        names = {name for value in values for name in _split_labels(value, separator)}
        if hierarchy:
            names |= {a for name in names for a in _ancestor_names(name, hierarchy)}
        if not names:
            raise UserError(f"{path}, column {column!r}: no row has a label; at least one is needed")
        return LabelSpace(sorted(names), [column], kind, separator=separator, hierarchy=hierarchy)
    if "" in values:
        row = [cell_text(v) for v in train[column]].index("") + 1
        raise UserError(f"{path}, row {row}, column {column!r}: the class is empty; fill it in or drop the row")
    if len(values) < 2:
        raise UserError(f"{path}, column {column!r}: every row has the class {values[0]!r}; at least two are needed")
    if kind == "single_label_classification":
        return LabelSpace(values, [column], kind, values)
    if set(values) <= set(_TRUTH):
        return LabelSpace([f"not_{column}", column], [column], kind, None)
    if len(values) > 2:
        raise UserError(
            f"{path}, column {column!r} has {len(values)} values ({', '.join(values[:5])}, ...); "
            "binary_classification needs two; set model.problem_type=single_label_classification"
        )
    return LabelSpace(values, [column], kind, values)


def read_labels(batch: dict[str, list[Any]], rows: list[int], labels: LabelSpace, path: str) -> list[Any]:
    """float rows of 0/1 for multi-label, class indices else.

    Raises
    ------
    UserError: a cell that says nothing known; names row, column and cell.
    """
    if labels.separator is not None:
        return _read_delimited(batch[labels.columns[0]], rows, labels, path)
    if labels.class_values is None:
        known, allowed = _TRUTH, "0 or 1"
    else:
        known = {value: i for i, value in enumerate(labels.class_values)}
        allowed = "a class of the training file: " + ", ".join(labels.class_values[:20])
    columns = []
    for column in labels.columns:
        values = []
        for row, cell in zip(rows, batch[column], strict=True):
            value = known.get(cell_text(cell).strip())
            if value is None:
                raise UserError(f"{path}, row {row + 1}, column {column!r}: {cell_text(cell)!r} is not {allowed}")
            values.append(value)
        columns.append(values)
    if not labels.multi_label:
        return [int(v) for v in columns[0]]
    marks = np.array(columns, dtype=np.float32).T
    return add_ancestors(marks, labels).tolist() if labels.hierarchy else marks.tolist()


def _read_delimited(cells: list[Any], rows: list[int], labels: LabelSpace, path: str) -> list[list[float]]:
    number = {name: i for i, name in enumerate(labels.names)}
    marks = np.zeros((len(cells), len(labels.names)), dtype=np.float32)
    for i, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        for name in _split_labels(cell_text(cell), labels.separator or ""):
            if name not in number:
                raise UserError(
                    f"{path}, row {row + 1}, column {labels.columns[0]!r}: the label {name!r} is not in the training "
                    "file, so it cannot be learned; take it out of that row or add training rows that have it"
                )
            marks[i, number[name]] = 1.0
    return add_ancestors(marks, labels).tolist()


def _split_labels(cell: str, separator: str) -> list[str]:
    return [name for part in cell.split(separator) if (name := part.strip())]


def _ancestor_names(name: str, hierarchy: str) -> list[str]:
    parts = name.split(hierarchy)
    return [hierarchy.join(parts[:depth]) for depth in range(1, len(parts))]
