"""Labels: their names, how they are read from a table, and which labels imply others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from llmcls.common.user_error import UserError
from llmcls.data.label_cells import (
    TRUTH,
    are_lists,
    are_vectors,
    example_of,
    list_items,
    look_alikes,
    names_of_cells,
    probability,
    separator_in,
    split_names,
)
from llmcls.data.label_mismatch import (
    MULTI_LABEL,
    require_hard,
    require_no_names,
    require_no_separator,
    require_single,
    require_truth,
)
from llmcls.data.marks import Values, are_many, from_lists, multi_hot_of_lists
from llmcls.data.tables import cell_text, column_texts, require_columns
from llmcls.recipe.schema import Recipe


@dataclass
class LabelSpace:
    """The labels of a recipe. The head has one output per label.

    Attributes
    ----------
    names : list of str
        In the order of the head's outputs.
    columns : list of str
        The table columns that contain the labels.
    problem_type : str
        As in the recipe.
    class_values : list of str, optional
        Single-label and binary: the cell value of each class. None for 0/1 columns and for multi-label.
    separator : str, optional
        Separates the labels of a cell, if one column contains all labels.
    hierarchy : str, optional
        Separates the parts of a label that is a path. Such a label implies its ancestors.
    lists : bool
        Whether the cells of the one column are lists of labels, as in ``['a', 'b']``.
    """

    names: list[str]
    columns: list[str]
    problem_type: str
    class_values: list[str] | None = None
    separator: str | None = None
    hierarchy: str | None = None
    lists: bool = False

    @property
    def multi_label(self) -> bool:
        """Whether a row can have any number of labels, instead of exactly one."""
        return self.problem_type == "multi_label_classification"

    @property
    def binary(self) -> bool:
        """Whether a row has one of two classes, of which the second is the positive one."""
        return self.problem_type == "binary_classification"

    @property
    def many(self) -> bool:
        """Whether marks are sparse and evaluation keeps the most probable labels of a row: see `llmcls.data.marks`."""
        return self.multi_label and are_many(len(self.names))

    def ancestors(self) -> list[list[int]]:
        """For each label, the indices of the labels that it implies.

        Examples
        --------
        >>> labels = LabelSpace(["a", "a/b", "a/b/c"], ["topics"], "multi_label_classification", hierarchy="/")
        >>> labels.ancestors()
        [[], [0], [0, 1]]
        """
        if self.hierarchy is None:
            return [[] for _ in self.names]
        index = {name: i for i, name in enumerate(self.names)}
        return [[index[a] for a in _ancestor_names(name, self.hierarchy) if a in index] for name in self.names]


def add_ancestors(marks: np.ndarray, labels: LabelSpace) -> np.ndarray:
    """Mark the ancestors of every marked label.

    Parameters
    ----------
    marks : float32 or bool [rows, labels]
    labels : LabelSpace

    Returns
    -------
    A new array of the type and shape of marks

    Examples
    --------
    >>> labels = LabelSpace(["a", "a/b", "c"], ["topics"], "multi_label_classification", hierarchy="/")
    >>> add_ancestors(np.array([[False, True, False]]), labels)
    array([[ True,  True, False]])
    """
    with_ancestors = marks.copy()
    for label, ancestors in enumerate(labels.ancestors()):
        for ancestor in ancestors:
            with_ancestors[:, ancestor] = np.maximum(with_ancestors[:, ancestor], marks[:, label])
    return with_ancestors


def count_positives(values: Values, labels: LabelSpace) -> np.ndarray:
    """Count the rows that have each label.

    Parameters
    ----------
    values : float32 [rows, labels], int64 [rows], or sparse [rows, labels]
        Label values as in a `Split`.
    labels : LabelSpace

    Returns
    -------
    int64 [labels]
    """
    if labels.multi_label:
        return np.asarray(values.sum(0)).ravel().astype(np.int64)
    return np.bincount(values, minlength=len(labels.names))


def multi_hot(values: np.ndarray, count: int) -> np.ndarray:
    """Label values as one mark per label.

    Parameters
    ----------
    values : float32 [rows, labels] or int64 [rows]
        0/1 marks, or class indices. Sparse marks stay sparse.
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


def values_of(found: list[Any], labels: LabelSpace) -> Values:
    """What `read_labels` found, as the label values of a `Split`."""
    if labels.many:
        return from_lists(found, len(labels.names))
    return np.array(found, np.float32 if labels.multi_label else np.int64)


def label_space(recipe: Recipe, train_table: datasets.Dataset) -> LabelSpace:
    """The labels of a recipe.

    Parameters
    ----------
    recipe : Recipe
        With several label columns, they are the labels.
    train_table : datasets.Dataset
        Otherwise, the classes or labels are read from the label column of this table.

    Returns
    -------
    LabelSpace

    Raises
    ------
    UserError
        If the label column is missing or holds something else than the recipe says, a class is empty, or there are too
        few or too many classes. The message names the key to set.
    """
    columns, kind = recipe.data.label_columns, recipe.model.problem_type
    path, column = recipe.data.train_csv, columns[0]
    require_no_names(train_table, columns, path)
    if len(columns) > 1:
        return LabelSpace(list(columns), list(columns), kind, hierarchy=recipe.data.hierarchy_separator)
    require_columns(train_table, [column], path, "data.label_columns")
    values = sorted({cell_text(v).strip() for v in column_texts(train_table, column).unique().to_pylist()})
    where, soft = f"{path}, column {column!r}", recipe.data.soft_labels
    if soft:
        values = names_of_cells(values, lists=kind == MULTI_LABEL and recipe.data.label_separator is None)
    else:
        require_hard(values, where, numbers=kind == "binary_classification")
    lists = are_lists(values)
    if lists and (length := are_vectors(values)):
        raise UserError(
            f"{where}: cells such as {example_of(values)!r} are vectors; write a column for each of the {length} "
            "labels, or lists of their names"
        )
    if kind == MULTI_LABEL:
        return _label_names(recipe, values, lists, where)
    if lists:
        require_single(values, where)
        values = sorted({name for value in values for name in list_items(value) or [value]})
    if "" in values:
        rows = [i for i, v in enumerate(train_table[column], 1) if cell_text(v).strip() in ("", "[]")]
        more = f" (and in {len(rows) - 1} more rows)" if len(rows) > 1 else ""
        raise UserError(
            f"{path}, row {rows[0]}, column {column!r}: the class is empty{more}; fill it in or drop the row"
        )
    if len(values) < 2:
        raise UserError(f"{where}: every row has the class {values[0]!r}; at least two are needed")
    require_no_separator(values, where)
    if kind == "single_label_classification":
        return LabelSpace(values, [column], kind, values, lists=lists)
    if set(values) <= set(TRUTH) or (soft and all(probability(value) is not None for value in values)):
        return LabelSpace([f"not_{column}", column], [column], kind, None, lists=lists)
    if len(values) > 2:
        raise UserError(
            f"{where} has {len(values)} values ({', '.join(values[:5])}, ...); "
            "binary_classification needs two; set model.problem_type=single_label_classification"
        )
    return LabelSpace(values, [column], kind, values, lists=lists)


def _label_names(recipe: Recipe, values: list[str], lists: bool, where: str) -> LabelSpace:
    """The labels of a multi-label recipe with one column, whose different cells are ``values``."""
    data, kind, column = recipe.data, recipe.model.problem_type, recipe.data.label_columns[0]
    separator, hierarchy = data.label_separator, data.hierarchy_separator
    if separator is None and not lists:
        if not data.soft_labels:
            require_truth(values, where)
        return LabelSpace([column], [column], kind, hierarchy=hierarchy)
    if lists:
        separator, names = None, {name for value in values for name in list_items(value) or ()}
    else:
        separator = separator or ""
        found = separator_in(values) if not any(separator in value for value in values) else None
        if found:
            raise UserError(
                f"{where}: no cell has data.label_separator={separator!r}, but {found!r} seems to separate labels, as "
                f"in {example_of(values, found)!r}; set data.label_separator={found!r}"
            )
        names = {name for value in values for name in split_names(value, separator)}
    if hierarchy:
        names |= {a for name in names for a in _ancestor_names(name, hierarchy)}
    if not names:
        raise UserError(f"{where}: no row has a label; at least one is needed")
    return LabelSpace(sorted(names), [column], kind, separator=separator, hierarchy=hierarchy, lists=lists)


def read_labels(batch: dict[str, list[Any]], rows: list[int], labels: LabelSpace, path: str) -> list[Any]:
    """Read the labels of some rows of a table.

    Parameters
    ----------
    batch : dict
        The cells of each column.
    rows : list of int
        The row numbers in the file, from 0, for error messages.
    labels : LabelSpace
    path : str
        The file, for error messages.

    Returns
    -------
    list
        Multi-label: a list of 0.0 and 1.0 per row, with ancestors marked; with many labels, a list of label indices.
        Otherwise: a class index per row. `values_of` makes an array of them.

    Raises
    ------
    UserError
        If a cell has no known value. The message names the row, the column and the value.
    """
    if labels.multi_label and (labels.separator is not None or labels.lists):
        return _read_delimited(batch[labels.columns[0]], rows, labels, path)
    if labels.class_values is None:
        known, allowed = TRUTH, "0 or 1"
    else:
        known = {value: i for i, value in enumerate(labels.class_values)}
        allowed = "a class of the training file: " + ", ".join(labels.class_values[:10])
    columns = []
    for column in labels.columns:
        values = []
        for row, cell in zip(rows, batch[column], strict=True):
            text = cell_text(cell).strip()
            items = (list_items(text) or ()) if labels.lists else ()
            value = known.get(items[0] if len(items) == 1 else text)
            if value is None:
                near = next((name for name in known if look_alikes([name, text])), None)
                hint = f"; did you mean {near!r}?" if near else ""
                if labels.class_values is None and probability(text) is not None:
                    hint = "; set data.soft_labels=true for probabilities"
                raise UserError(f"{path}, row {row + 1}, column {column!r}: {cell_text(cell)!r} is not {allowed}{hint}")
            values.append(value)
        columns.append(values)
    if not labels.multi_label:
        return [int(v) for v in columns[0]]
    numbers = [[label for label, value in enumerate(row) if value] for row in zip(*columns, strict=True)]
    return _marked(numbers, labels)


def _read_delimited(cells: list[Any], rows: list[int], labels: LabelSpace, path: str) -> list[Any]:
    """Read a column that contains all labels of a row."""
    index = {name: i for i, name in enumerate(labels.names)}
    numbers: list[list[int]] = []
    for row, cell in zip(rows, cells, strict=True):
        numbers.append([])
        for name in names_in(cell_text(cell), labels):
            if name not in index:
                raise UserError(
                    f"{path}, row {row + 1}, column {labels.columns[0]!r}: the label {name!r} is not in the training "
                    "file, so it cannot be learned; remove it from this row or add training rows with it"
                )
            numbers[-1].append(index[name])
    return _marked(numbers, labels)


def _marked(numbers: list[list[int]], labels: LabelSpace) -> list[Any]:
    """The labels of each row with their ancestors: as indices where there are many, else as marks."""
    ancestors = labels.ancestors()
    whole = [sorted({*row, *(a for label in row for a in ancestors[label])}) for row in numbers]
    return whole if labels.many else multi_hot_of_lists(whole, len(labels.names)).astype(np.float32).tolist()


def names_in(cell: str, labels: LabelSpace) -> list[str]:
    """The labels that a cell names, where one column holds all labels."""
    if labels.lists:
        items = list_items(cell)
        return split_names(cell, "\0") if items is None else list(items)
    return split_names(cell, labels.separator or "\0")


def _ancestor_names(name: str, hierarchy: str) -> list[str]:
    """The ancestors of a label, from the root: "a" and "a/b" for "a/b/c"."""
    parts = name.split(hierarchy)
    return [hierarchy.join(parts[:depth]) for depth in range(1, len(parts))]
