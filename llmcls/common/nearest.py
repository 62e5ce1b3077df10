"""The known name that a wrong one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Comparing takes the product of the lengths, for each known name.
LONGEST = 100
MOST = 2000


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of some known names; None if none is similar, or if there are too many to compare.

    Parameters
    ----------
    name : str
    known : iterable of str
    cutoff : float
        From 0, any name is similar, to 1, only the same name is.

    Examples
    --------
    >>> nearest("learning_rte", ["learning_rate", "batch_size"])
    'learning_rate'
    """
    if len(name) > LONGEST:
        return None
    candidates = [other for other in known if len(other) <= LONGEST]
    if len(candidates) > MOST:
        return None
    return next(iter(difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)), None)
