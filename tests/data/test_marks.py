from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmcls.data import marks
from llmcls.data.batches import balanced_weights
from llmcls.data.findings import repeated_rows, rows_without_label
from llmcls.data.holdout import held_out_rows
from llmcls.data.labels import LabelSpace, count_positives, read_labels, values_of
from llmcls.data.marks import dense_rows, differing_rows, from_lists, labels_per_row, largest_weights, rarest_labels
from llmcls.data.splits import Split
from llmcls.data.subset import nested_order
from llmcls.recipe.schema import DataSection

LABELS = LabelSpace([f"l{i:02}" for i in range(12)], ["labels"], "multi_label_classification", separator="|")


def lists(rows: int = 60, seed: int = 0) -> list[list[int]]:
    """Label indices: few labels are frequent, and some rows have none."""
    rng = np.random.default_rng(seed)
    return [np.flatnonzero(rng.random(12) < 0.7 / np.arange(1, 13)).tolist() for _ in range(rows)]


def both(monkeypatch: pytest.MonkeyPatch, found: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A result with dense marks, and with sparse ones of the same labels."""
    cells = {"labels": ["|".join(LABELS.names[i] for i in row) for row in lists()]}
    results = []
    for limit in (1000, 5):
        monkeypatch.setattr(marks, "MANY_LABELS", limit)
        results.append(found(values_of(read_labels(cells, list(range(60)), LABELS, "t.csv"), LABELS)))
    return results[0], results[1]


def split_of(values: Any) -> Split:
    digests = np.arange(60) // 2 + 1
    return Split("train", "t.csv", [], np.ones(60, np.int32), values, None, digests=digests)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "of",
    [
        lambda v: dense_rows(v, np.array([5, 0, 7])),
        labels_per_row,
        lambda v: count_positives(v, LABELS),
        lambda v: nested_order(v, LABELS, seed=3),
        lambda v: differing_rows(v, np.arange(30), np.arange(30, 60)),
        lambda v: rows_without_label(split_of(v), LABELS),
        lambda v: np.concatenate(repeated_rows(split_of(v))),
        lambda v: held_out_rows(v, np.arange(60), LABELS, DataSection("d", "t.csv", ["labels"], validation_split=0.2)),
    ],
)
def test_sparse_marks_give_what_dense_ones_give(monkeypatch: pytest.MonkeyPatch, of: Callable[[Any], Any]) -> None:
    dense, sparse = both(monkeypatch, of)
    assert dense.dtype == sparse.dtype
    assert np.array_equal(dense, sparse)


def test_sampling_weights_of_sparse_marks_are_those_of_dense_ones() -> None:
    values = from_lists(lists(), 12)
    counts = np.maximum(count_positives(values, LABELS), 1)
    found = largest_weights(values, np.sqrt(counts.max() / counts))
    assert found == pytest.approx(balanced_weights(values.toarray() > 0))


def test_ancestors_are_marked_in_sparse_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = LabelSpace(["a", "a/b", "a/b/c", "d"], ["k"], "multi_label_classification", separator="|", hierarchy="/")
    monkeypatch.setattr(marks, "MANY_LABELS", 3)
    assert read_labels({"k": ["d|a/b/c|d", "", "a/b"]}, [0, 1, 2], labels, "t.csv") == [[0, 1, 2, 3], [], [0, 1]]


def test_the_rarest_label_of_a_row_is_found() -> None:
    assert rarest_labels(from_lists([[0, 2], [0], [0, 1, 2], []], 3)).tolist() == [2, 0, 1, 3]
