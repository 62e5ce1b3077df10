"""Label values of rows: one dense array for few labels, sparse marks for many.

With thousands of labels an array of rows times labels does not fit into memory, while a row has a handful of labels.
`MANY_LABELS` decides: a multi-label task with more labels keeps its marks sparse, and evaluation keeps the most
probable labels of each row only. Marks become dense for one micro-batch at a time, see `dense_rows`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

# The most labels of a multi-label task whose marks and probabilities are dense.
MANY_LABELS = 1000

# float32 [rows, labels] or int64 [rows]; with many labels scipy.sparse.csr_matrix, float32 [rows, labels]. scipy.sparse
# has no types.
Values: TypeAlias = Any


def are_many(count: int) -> bool:
    """Whether so many labels of a multi-label task are kept sparse."""
    return count > MANY_LABELS


def multi_hot_of_lists(numbers: list[list[int]], count: int) -> np.ndarray:
    """Lists of label indices as one mark per label.

    Parameters
    ----------
    numbers : list of list of int
        The label indices of each row, which can be empty.
    count : int
        Number of labels.

    Returns
    -------
    bool [rows, labels]

    Examples
    --------
    >>> multi_hot_of_lists([[0, 2], []], 3)
    array([[ True, False,  True],
           [False, False, False]])
    """
    marks = np.zeros((len(numbers), count), dtype=bool)
    for row, chosen in enumerate(numbers):
        marks[row, chosen] = True
    return marks


def from_lists(numbers: list[list[int]], count: int) -> sparse.csr_matrix:
    """Lists of label indices as sparse marks.

    Parameters
    ----------
    numbers : list of list of int
        The label indices of each row, which can be empty.
    count : int
        Number of labels.

    Returns
    -------
    float32 sparse [rows, labels]

    Examples
    --------
    >>> from_lists([[2, 0], []], 3).toarray()
    array([[1., 0., 1.],
           [0., 0., 0.]], dtype=float32)
    """
    offsets = np.cumsum([0, *map(len, numbers)])
    flat = np.fromiter((label for row in numbers for label in row), dtype=np.int32, count=int(offsets[-1]))
    return from_offsets(offsets, flat, count)


def from_offsets(offsets: np.ndarray, flat: np.ndarray, count: int) -> sparse.csr_matrix:
    """Marks from the label indices of all rows, one after the other.

    Parameters
    ----------
    offsets : int [rows + 1]
        Where the indices of each row begin.
    flat : int32 [marks]
    count : int
        Number of labels.
    """
    marks = sparse.csr_matrix((np.ones(len(flat), np.float32), flat, offsets), shape=(len(offsets) - 1, count))
    marks.sort_indices()
    return marks


def sparse_marks(values: Values, count: int) -> sparse.csr_matrix:
    """Label values as marks without the zeros.

    Parameters
    ----------
    values : float32 [rows, labels], int64 [rows], or sparse [rows, labels]
    count : int
        Number of labels.

    Returns
    -------
    int64 sparse [rows, labels]
    """
    if sparse.issparse(values):
        return values.astype(np.int64)
    rows, columns = np.nonzero(values) if values.ndim == 2 else (np.arange(len(values)), values)
    return sparse.csr_matrix((np.ones(len(rows), np.int64), (rows, columns)), shape=(len(values), count))


def dense_rows(values: Values, rows: np.ndarray) -> np.ndarray:
    """Label values of a few rows as an array, as losses want them.

    Returns
    -------
    float32 [selected rows, labels] or int64 [selected rows]
    """
    chosen = values[rows]
    found: np.ndarray = chosen.toarray() if sparse.issparse(chosen) else chosen
    return found


def labels_per_row(values: Values) -> np.ndarray:
    """How many labels each row of a multi-label task has, float32 [rows]."""
    return np.asarray(values.sum(axis=1)).ravel()


def differing_rows(values: Values, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether the rows ``first`` have other labels than the rows ``second``, bool [rows]."""
    differs = values[first] != values[second]
    if sparse.issparse(differs):
        return np.asarray(differs.getnnz(axis=1)) > 0
    return differs.any(axis=1) if differs.ndim == 2 else differs


def rarest_labels(values: sparse.csr_matrix) -> np.ndarray:
    """The label of each row that the fewest rows have; the number of labels for a row without one. int64 [rows].

    Examples
    --------
    >>> rarest_labels(from_lists([[0, 1], [0], []], 2)).tolist()
    [1, 0, 2]
    """
    counts = np.bincount(values.indices, minlength=values.shape[1])
    rows = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    order = np.lexsort((values.indices, counts[values.indices], rows))
    found = np.full(values.shape[0], values.shape[1], dtype=np.int64)
    first = np.unique(rows[order], return_index=True)[1]
    found[rows[order][first]] = values.indices[order][first]
    return found


def largest_weights(values: sparse.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """The largest weight of the labels of each row, at least 1: float64 [rows]."""
    weighted = values.astype(np.float64)
    weighted.data = weights[weighted.indices]
    return np.maximum(1.0, weighted.max(axis=1).toarray().ravel())
