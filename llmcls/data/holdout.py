"""Validation rows held out of the training file (``data.validation_split``): stratified, and the same for every run."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from llmcls.common.user_error import UserError
from llmcls.data.encoding import whole_texts
from llmcls.data.labels import LabelSpace, label_space, values_of
from llmcls.data.marks import Values, sparse_marks
from llmcls.data.soft_labels import read_hard_labels
from llmcls.data.splits import text_digest
from llmcls.data.tables import read_table
from llmcls.recipe.schema import DataSection, Recipe


def held_out_rows(values: Values, digests: np.ndarray, labels: LabelSpace, data: DataSection) -> np.ndarray | None:
    """The rows of the training file that are validation rows, in its order; None if the recipe holds none out.

    They depend on the labels and the texts of the file and on ``data.validation_split_seed``, and on nothing else, so
    every seed, process and command finds the same ones.

    Parameters
    ----------
    values : float32 [rows, labels], int64 [rows], or sparse [rows, labels]
        Label values of all rows.
    digests : int64 [rows]
        The `text_digest` of all rows. Rows with the same text stay together.
    labels : LabelSpace
    data : DataSection

    Returns
    -------
    int64 [validation rows] or None

    Raises
    ------
    UserError
        If no row would be left for validation.
    """
    if data.validation_split is None:
        return None
    # Empty texts have nothing in common.
    groups = np.where(digests == 0, -1 - np.arange(len(digests)), digests)
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    marks = sparse_marks(values, len(labels.names))[first]
    held = stratified_part(marks, data.validation_split, data.validation_split_seed)
    rows = np.flatnonzero(held[group])
    if len(rows) == 0:
        raise UserError(
            f"data.validation_split is {data.validation_split:g}, which is no row of the {values.shape[0]} of "
            f"{data.train_csv}; raise it, or name a validation file with data.val_csv"
        )
    return rows


def stratified_part(marks: sparse.csr_matrix, share: float, seed: int) -> np.ndarray:
    """A sample of rows in which every label has its share, by iterative stratification.

    Parameters
    ----------
    marks : int64 sparse [rows, labels]
        See `sparse_marks`.
    share : float
    seed : int

    Returns
    -------
    bool [rows]

    Notes
    -----
    Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data", algorithm 1, for two parts: the
    label with the fewest rows that are not yet assigned comes next, and its rows are assigned so that both parts get
    what they still need of it. All rows of a label are assigned at once. A share that is not whole is rounded so that
    the sample gets its size. A label keeps at least one row outside the sample.
    """
    rng = np.random.default_rng(seed)
    columns = marks.tocsc()
    rows, counts = marks.shape[0], np.asarray(marks.sum(axis=0)).ravel()
    needed, remaining, outside = share * counts, counts.copy(), np.zeros(len(counts), np.int64)
    held, free = np.zeros(rows, bool), np.ones(rows, bool)
    while (remaining > 0).any():
        label = int(np.where(remaining > 0, remaining, rows + 1).argmin())
        members = columns.indices[columns.indptr[label] : columns.indptr[label + 1]]
        members = rng.permutation(np.sort(members[free[members]]))
        most = len(members) if outside[label] else len(members) - 1
        # What is rounded away here and there must not add up.
        behind = share * (rows - free.sum() + len(members)) - held.sum() - needed[label]
        chosen = members[: int(np.clip(round(needed[label] + np.clip(behind, -0.5, 0.5)), 0, most))]
        held[chosen], free[members] = True, False
        inside, assigned = (np.asarray(marks[part].sum(axis=0)).ravel() for part in (chosen, members))
        needed, remaining, outside = needed - inside, remaining - assigned, outside + assigned - inside
    bare = rng.permutation(np.flatnonzero(free))
    held[bare[: int(np.clip(round(share * rows) - held.sum(), 0, len(bare)))]] = True
    return held


def rows_of_split(recipe: Recipe, split: str, labels: LabelSpace | None = None) -> np.ndarray | None:
    """The rows of its file that a split has; None if it has all. Reads the training file if it holds some out.

    ``data.train_rows`` is not considered.

    Parameters
    ----------
    recipe : Recipe
    split : str
        "train", "validation" or "test".
    labels : LabelSpace, optional
        Those of the training file by default.
    """
    data = recipe.data
    if data.validation_split is None or split == "test":
        return None
    table = read_table(data.train_csv, "data.train_csv", data)
    labels = labels or label_space(recipe, table)
    cells = {column: table[column][:] for column in labels.columns}
    found = read_hard_labels(cells, list(range(len(table))), labels, data.train_csv, data)
    values = values_of(found, labels)
    digests = np.array([text_digest(text) for text in whole_texts(table, data)], np.int64)
    held = held_out_rows(values, digests, labels, data)
    return held if split == "validation" or held is None else kept_rows(held, len(table))


def kept_rows(held: np.ndarray, count: int) -> np.ndarray:
    """The rows of a file of ``count`` rows that are not held out, int64, in its order."""
    return np.setdiff1d(np.arange(count), held)
