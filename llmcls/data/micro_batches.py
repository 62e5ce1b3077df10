"""Cutting rows into micro-batches: as few as a budget of tokens allows, with nearly equal costs.

The cost of a micro-batch is the sum of the lengths of its rows if it is packed, else the number of rows times the
longest one. Each pass has a fixed cost on the host, so few passes are faster than many, and passes of equal cost use
the device better than full ones followed by a nearly empty one.
"""

from __future__ import annotations

import heapq

import numpy as np

# Halvings of the interval in which the smallest sufficient capacity is searched for; 2 ** -8 is a share of 0.4 %.
HALVINGS = 8


def balanced_bins(lengths: list[int], ranks: int, max_tokens: int) -> list[list[int]]:
    """Pack rows into ``ranks`` x passes bins, with the fewest passes found and nearly equal sums of lengths.

    Parameters
    ----------
    lengths : list of int
        Tokens per row, longest first.
    ranks : int
        The number of bins is a multiple of it.
    max_tokens : int
        Maximum sum of a bin. A longer row gets a bin with no other rows.

    Returns
    -------
    list of list of int
        Positions in ``lengths``, ascending. Bins can be empty if there are fewer rows than bins.

    Notes
    -----
    For each number of passes, from the smallest that the sum of the lengths allows, rows are assigned to the bin with
    the smallest sum (longest processing time first, Graham 1969, "Bounds on multiprocessing timing anomalies"). Where
    this exceeds the budget but first-fit decreasing does not, the bins are those of first-fit decreasing with the
    smallest capacity that suffices (MULTIFIT, Coffman, Garey and Johnson 1978).

    Examples
    --------
    >>> balanced_bins([6, 5, 4, 3, 2], ranks=1, max_tokens=12)
    [[0, 3, 4], [1, 2]]
    """
    # Nothing fits beside a row that fills the budget, so it counts as a full bin, however long it is.
    clipped = [min(length, max_tokens) for length in lengths]
    passes = max(1, -(-sum(clipped) // (max_tokens * ranks)))
    bins = _smallest_sum_first(clipped, passes * ranks)
    if _fits(bins, clipped, max_tokens):
        return bins
    enough = -(-len(_first_fit(clipped, max_tokens)) // ranks)
    for number in range(passes + 1, enough):
        bins = _smallest_sum_first(clipped, number * ranks)
        if _fits(bins, clipped, max_tokens):
            return bins
    bins = _smallest_sum_first(clipped, enough * ranks)
    return bins if _fits(bins, clipped, max_tokens) else _multifit(clipped, enough * ranks, max_tokens)


def even_runs(lengths: np.ndarray, runs: int, max_tokens: int, packed: bool) -> list[slice]:
    """Cut rows, sorted longest first, into runs of neighbours with nearly equal costs.

    Parameters
    ----------
    lengths : int [rows]
        Tokens per row, longest first.
    runs : int
        How many runs to make if rows suffice. If the budget needs more, the number is the next multiple.
    max_tokens : int
        Maximum cost of a run of more than one row.
    packed : bool

    Returns
    -------
    list of slice
        Without gaps, at most the number of runs asked for or needed.

    Notes
    -----
    Taking as many rows as fit gives the fewest runs under a capacity, and for padded rows the fewest of any division:
    the longest row decides how many rows can join it, and the next longest ones lose least by that. The capacity is
    the smallest one, up to an interval of 2 ** -`HALVINGS`, that needs no more runs.

    Examples
    --------
    >>> even_runs(np.array([5, 4, 3, 2, 1]), runs=1, max_tokens=14, packed=True)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    best = _greedy_runs(lengths, max_tokens, packed)
    allowed = -(-len(best) // runs) * runs
    low, high = 0, max_tokens
    for _ in range(HALVINGS if len(best) > 1 or runs > 1 else 0):
        capacity = (low + high) // 2
        found = _greedy_runs(lengths, capacity, packed) if capacity > 0 else []
        if found and len(found) <= allowed:
            best, high = found, capacity
        else:
            low = capacity
    return best


def _greedy_runs(lengths: np.ndarray, capacity: int, packed: bool) -> list[slice]:
    """Runs of neighbours, each with as many rows as fit under ``capacity`` and at least one."""
    ends = np.cumsum(lengths)
    found, start = [], 0
    while start < len(lengths):
        if packed:
            before = int(ends[start - 1]) if start else 0
            count = int(np.searchsorted(ends[start:], before + capacity, side="right"))
        else:
            # All rows are padded to the first one, which is the longest.
            count = capacity // int(lengths[start])
        end = min(len(lengths), start + max(1, count))
        found.append(slice(start, end))
        start = end
    return found


def _smallest_sum_first(lengths: list[int], number: int) -> list[list[int]]:
    """Assign each row, longest first, to the bin with the smallest sum; of several, to the first."""
    bins: list[list[int]] = [[] for _ in range(number)]
    heap = [(0, bin_) for bin_ in range(number)]
    for position, length in enumerate(lengths):
        tokens, bin_ = heap[0]
        bins[bin_].append(position)
        heapq.heapreplace(heap, (tokens + length, bin_))
    return bins


def _fits(bins: list[list[int]], lengths: list[int], max_tokens: int) -> bool:
    return all(sum(lengths[position] for position in bin_) <= max_tokens for bin_ in bins)


def _first_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Assign each row, longest first, to the first bin with room for it."""
    bins: list[list[int]] = []
    room: list[int] = []
    for position, length in enumerate(lengths):
        bin_ = next((b for b, free in enumerate(room) if free >= length), None)
        if bin_ is None:
            bins.append([])
            room.append(capacity)
            bin_ = len(bins) - 1
        bins[bin_].append(position)
        room[bin_] -= length
    return bins


def _multifit(lengths: list[int], number: int, max_tokens: int) -> list[list[int]]:
    """First-fit decreasing into ``number`` bins, which must suffice at ``max_tokens``, with the smallest capacity."""
    best = _first_fit(lengths, max_tokens)
    low, high = max(lengths[0], -(-sum(lengths) // number)) - 1, max_tokens
    for _ in range(HALVINGS):
        capacity = (low + high) // 2
        if capacity <= low:
            break
        found = _first_fit(lengths, capacity)
        if len(found) <= number:
            best, high = found, capacity
        else:
            low = capacity
    return best + [[] for _ in range(number - len(best))]
