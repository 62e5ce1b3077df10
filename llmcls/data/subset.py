"""A part of the training rows: nested samples in which every label has its share.

``data.train_rows`` trains on such a sample, as a learning curve does.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace, multi_hot
from llmcls.data.marks import Values, rarest_labels
from llmcls.data.splits import SelectedTokens, Split, numbers_of
from llmcls.recipe.schema import DataSection


def chosen_rows(values: Values, labels: LabelSpace, data: DataSection) -> np.ndarray | None:
    """The training rows that a recipe uses, in the order of the file; None if it uses all.

    Parameters
    ----------
    values : float32 [rows, labels], int64 [rows], or sparse [rows, labels]
        Label values of all training rows.
    labels : LabelSpace
    data : DataSection

    Returns
    -------
    int64 [train_rows] or None

    Raises
    ------
    UserError
        If ``data.train_rows`` is more than there are.
    """
    if data.train_rows is None:
        return None
    if data.train_rows > values.shape[0]:
        raise UserError(
            f"data.train_rows is {data.train_rows}, but {data.train_csv} has {values.shape[0]} rows; "
            "give a smaller number, or leave it out to use all"
        )
    chosen: np.ndarray = np.sort(nested_order(values, labels, data.train_rows_seed)[: data.train_rows])
    return chosen


def nested_order(values: Values, labels: LabelSpace, seed: int) -> np.ndarray:
    """An order of rows of which every beginning is a stratified sample.

    It begins with one row for each label, the most frequent one first; then each label gets its share. A row with
    several labels counts for its rarest.

    Parameters
    ----------
    values : float32 [rows, labels], int64 [rows], or sparse [rows, labels]
    labels : LabelSpace
    seed : int

    Returns
    -------
    int64 [rows]

    Examples
    --------
    >>> labels = LabelSpace(["a", "b"], ["class"], "single_label_classification", ["a", "b"])
    >>> values = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    >>> values[nested_order(values, labels, seed=0)].tolist()
    [0, 1, 0, 0, 0, 0, 1, 0]
    """
    rng = np.random.default_rng(seed)
    if labels.many:
        strata = rarest_labels(values)
    else:
        marks = multi_hot(values, len(labels.names))
        rarity = np.where(marks, marks.sum(axis=0), len(marks) + 1)
        strata = np.where(marks.any(axis=1), rarity.argmin(axis=1), len(labels.names))
    position = np.empty(len(strata))
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        # Evenly over the order, from a random start; the first row comes before all that are not a first one.
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
        position[members[0]] = -len(members)
    return np.argsort(position, kind="stable")


def part_of(split: Split, rows: np.ndarray) -> Split:
    """Some rows of a split."""
    return dataclasses.replace(
        split,
        tokens=SelectedTokens(split.tokens, rows),
        lengths=split.lengths[rows],
        labels=None if split.labels is None else split.labels[rows],
        table=split.table.select(rows),
        digests=None if split.digests is None else split.digests[rows],
        numbers=numbers_of(split, rows),
        soft=None if split.soft is None else split.soft[rows],
    )
