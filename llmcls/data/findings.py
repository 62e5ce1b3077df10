"""What is strange about the rows of a split: empty texts, no labels, texts that occur twice or in training."""

from __future__ import annotations

import logging

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.data.marks import differing_rows, labels_per_row
from llmcls.data.splits import Split, numbers_of

log = logging.getLogger(__name__)

# Above this share of its texts, a split that is also in the training file measures memory.
MOST_SHARED = 0.5


def shown_rows(numbers: np.ndarray, most: int = 3) -> str:
    """Row numbers for a sentence.

    Examples
    --------
    >>> shown_rows(np.array([3, 8, 9, 12])), shown_rows(np.array([3]))
    ('rows 3, 8, 9 and 1 more', 'row 3')
    """
    first = ", ".join(str(number) for number in numbers[:most])
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"row{'s' if len(numbers) > 1 else ''} {first}{more}"


def rows_without_text(split: Split) -> np.ndarray:
    """The rows of a split whose text is empty, int64."""
    return np.flatnonzero(split.known_digests == 0)


def rows_without_label(split: Split, labels: LabelSpace) -> np.ndarray:
    """The rows of a multi-label split that have no label, int64; in other tasks every row has one."""
    return np.flatnonzero(labels_per_row(split.known_labels) == 0) if labels.multi_label else np.empty(0, np.int64)


def repeated_rows(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose text occurs earlier in the split, and those of them that have other labels than the first.

    Returns
    -------
    repeated, contradicting : int64 arrays of rows
    """
    _, first, group = np.unique(split.known_digests, return_index=True, return_inverse=True)
    earlier = first[group]
    repeated = np.flatnonzero((earlier != np.arange(len(split))) & (split.known_digests != 0))
    return repeated, repeated[differing_rows(split.known_labels, repeated, earlier[repeated])]


def rows_in_training(split: Split, train: Split) -> np.ndarray:
    """The rows of a split whose text is a training text too, int64."""
    found = np.isin(split.known_digests, train.known_digests)
    return np.flatnonzero(found & (split.known_digests != 0))


def warn_about_rows(split: Split, labels: LabelSpace) -> None:
    """Log what is strange about the rows of a split with labels, with counts and row numbers."""
    empty, bare = rows_without_text(split), rows_without_label(split, labels)
    repeated, contradicting = repeated_rows(split)
    for rows, what in (
        (empty, "empty, so their labels come from nothing"),
        (contradicting, "also there with other labels"),
    ):
        if len(rows):
            shown = shown_rows(numbers_of(split, rows))
            log.warning("%s: %d of %d texts are %s (%s)", split.path, len(rows), len(split), what, shown)
    if len(bare):
        said = log.warning if 2 * len(bare) > len(split) else log.info
        said(
            "%s: %d of %d rows have no label (%s)",
            split.path,
            len(bare),
            len(split),
            shown_rows(numbers_of(split, bare)),
        )
    if len(repeated):
        said = log.warning if 10 * len(repeated) > len(split) else log.info
        shown = shown_rows(numbers_of(split, repeated))
        said("%s: %d of %d texts occur earlier in the file (%s)", split.path, len(repeated), len(split), shown)


def warn_about_leaks(split: Split, train: Split) -> None:
    """Log how many texts of validation or test are training texts too."""
    rows = rows_in_training(split, train)
    if len(rows) == 0:
        return
    shown = shown_rows(numbers_of(split, rows))
    if len(rows) > MOST_SHARED * len(split):
        log.warning(
            "%s: %d of %d texts of %s are training texts too (%s); its metrics show what was learned by heart, not how "
            "new texts are classified",
            split.path, len(rows), len(split), split.name, shown,
        )  # fmt: skip
    else:
        log.warning(
            "%s: %d of %d texts of %s are training texts too (%s)", split.path, len(rows), len(split), split.name, shown
        )
