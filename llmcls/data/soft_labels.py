"""Soft labels: cells that are probabilities (``data.soft_labels``), and what they are where hard labels are needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmcls.common.nearest import nearest
from llmcls.common.user_error import UserError
from llmcls.data.label_cells import probability, soft_cell
from llmcls.data.labels import LabelSpace, add_ancestors, multi_hot, read_labels
from llmcls.data.tables import cell_text
from llmcls.recipe.schema import DataSection

# How far the probabilities of classes may be from 1 together: numbers in tables are rounded.
ROUNDING = 0.011


def read_soft_labels(batch: dict[str, list[Any]], rows: list[int], labels: LabelSpace, path: str) -> np.ndarray:
    """Read the probabilities of some rows of a table.

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
    float32 [rows, labels]
        Multi-label: the probability of each label. Otherwise those of the classes; they sum to 1. Cells with labels
        are probabilities of 0 and 1.

    Raises
    ------
    UserError
        If a cell is not a probability, or those of classes do not sum to 1. The message names the row and the column.
    """
    if labels.class_values is None and labels.separator is None and not labels.lists:
        found = np.array([_read_column(batch[column], rows, column, path) for column in labels.columns]).T
        if labels.binary:
            found = np.concatenate([1 - found, found], axis=1)
    else:
        found = _read_named(batch[labels.columns[0]], rows, labels, path)
    if labels.multi_label:
        return add_ancestors(found.astype(np.float32), labels)
    sums = found.sum(axis=1, keepdims=True)
    wrong = np.flatnonzero(np.abs(sums[:, 0] - 1) > ROUNDING)
    if len(wrong):
        raise UserError(
            f"{path}, row {rows[wrong[0]] + 1}: the probabilities of the classes sum to {sums[wrong[0], 0]:.4g}; they "
            "must sum to 1, or set model.problem_type=multi_label_classification"
        )
    return (found / sums).astype(np.float32)


def harden(soft: np.ndarray, labels: LabelSpace) -> np.ndarray:
    """The label values that probabilities stand for, where a rule needs to know what a row is.

    Parameters
    ----------
    soft : float32 [rows, labels]
        From `read_soft_labels`.
    labels : LabelSpace

    Returns
    -------
    float32 [rows, labels] or int64 [rows]
        As in a `Split`. Multi-label: labels from 0.5 on. Otherwise: the most probable class; of two alike the first,
        and in binary tasks the positive one.
    """
    if labels.multi_label:
        return (soft >= 0.5).astype(np.float32)
    return (soft[:, 1] >= 0.5).astype(np.int64) if labels.binary else soft.argmax(axis=1)


def read_hard_labels(
    batch: dict[str, list[Any]], rows: list[int], labels: LabelSpace, path: str, data: DataSection
) -> list[Any]:
    """What `read_labels` returns, of cells that may be probabilities if the recipe says so."""
    if not data.soft_labels:
        return read_labels(batch, rows, labels, path)
    return harden(read_soft_labels(batch, rows, labels, path), labels).tolist()


def _read_column(cells: list[Any], rows: list[int], column: str, path: str) -> np.ndarray:
    """The probabilities in a column of numbers, float64 [rows]."""
    found = np.empty(len(cells))
    for i, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        value = probability(cell_text(cell).strip())
        if value is None:
            raise UserError(
                f"{path}, row {row + 1}, column {column!r}: {cell_text(cell)[:40]!r} is not a probability; write a "
                "number from 0 to 1"
            )
        found[i] = value
    return found


def _read_named(cells: list[Any], rows: list[int], labels: LabelSpace, path: str) -> np.ndarray:
    """Probabilities by name, as in ``{"a": 0.7, "b": 0.3}``, among cells that name labels; float64 [rows, labels]."""
    index = {name: i for i, name in enumerate(labels.names)}
    found, hard, column = np.zeros((len(cells), len(index))), [], labels.columns[0]
    for i, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        named = soft_cell(cell_text(cell))
        if named is None:
            hard.append(i)
            continue
        for name, value in named.items():
            if name not in index:
                near = nearest(name, index)
                hint = f"; did you mean {near!r}?" if near else "; it is not in the training file"
                raise UserError(f"{path}, row {row + 1}, column {column!r}: {name!r} is not a known label{hint}")
            if not 0 <= value <= 1:
                raise UserError(
                    f"{path}, row {row + 1}, column {column!r}: the probability of {name!r} is {value:g}; write a "
                    "number from 0 to 1"
                )
            found[i, index[name]] = value
    if hard:
        named_cells = {column: [cells[i] for i in hard]}
        values = read_labels(named_cells, [rows[i] for i in hard], labels, path)
        found[hard] = multi_hot(np.array(values), len(index))
    return found
