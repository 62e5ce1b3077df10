"""The predictions file: one JSON line per row. This module alone writes, reads and rewrites the format."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from llmcls.common.files import replacing
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace, multi_hot
from llmcls.data.marks import from_lists, multi_hot_of_lists
from llmcls.data.splits import Split
from llmcls.evaluation.bootstrap import Marks
from llmcls.evaluation.outcome import CHUNK_ROWS, Evaluation
from llmcls.evaluation.top_scores import kept_hits


@dataclass
class Predictions:
    """Some rows of a predictions file.

    Attributes
    ----------
    ids : list of str
    probabilities : float32 [rows, labels]
        With many labels sparse, of the most probable labels of each row.
    predicted : bool [rows, labels]
        With many labels sparse.
    true : float32 [rows, labels] or int64 [rows], optional
        Label values as in a `Split`; None if the file has none.
    """

    ids: list[str]
    probabilities: Marks
    predicted: Marks
    true: Marks | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def known_true(self) -> Marks:
        """The label values of predictions that have them, as those of a run do.

        Raises
        ------
        ValueError
            If the predictions have none.
        """
        if self.true is None:
            raise ValueError("these predictions were made without true labels")
        return self.true

    def true_marks(self, labels: LabelSpace) -> Marks:
        """The true labels, bool [rows, labels]."""
        return multi_hot(self.known_true, len(labels.names))


def cells_of(predictions: Predictions, labels: LabelSpace, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probability of all cells of every ``stride``-th row: bool [cells], float32 [cells].

    With many labels, of the kept cells.
    """
    true: Any = predictions.true_marks(labels)[::stride]
    probabilities: Any = predictions.probabilities[::stride]
    if labels.many:
        return kept_hits(probabilities, true), probabilities.data
    return true.ravel(), probabilities.ravel()


def prediction_lines(
    predictions: Predictions, labels: LabelSpace, kept: np.ndarray | None = None, sets: np.ndarray | None = None
) -> Iterator[str]:
    """One JSON line per row: id, the probability of every label, the predicted labels, and the true ones if known.

    With many labels a line has the probabilities of the most probable labels only, in falling order.

    Parameters
    ----------
    predictions : Predictions
    labels : LabelSpace
    kept : bool [rows, labels], optional
        The predicted labels that are sure enough; the others are listed as "unsure" instead.
    sets : bool [rows, labels], optional
        The labels that are listed as "set".
    """
    names = labels.names
    marks = None if predictions.true is None else multi_hot(predictions.true, len(names))
    for i, row_id in enumerate(predictions.ids):
        line: dict[str, Any] = {
            "id": row_id,
            "probabilities": {name: round(float(p), 9) for name, p in _scores(predictions.probabilities, i, names)},
            "labels": _names(predictions.predicted[i] if kept is None else kept[i], names),
        }
        if kept is not None:
            line["unsure"] = _names(predictions.predicted[i] & ~kept[i], names)
        if sets is not None:
            line["set"] = _names(sets[i], names)
        if marks is not None:
            line["true"] = _names(marks[i], names)
        yield _dump(line)


def write_predictions(path: Path, split: Split, evaluation: Evaluation, labels: LabelSpace) -> None:
    """Write the predictions of a whole split."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for first in range(0, len(split), CHUNK_ROWS):
            last = min(len(split), first + CHUNK_ROWS)
            chunk = Predictions(
                split.ids(first, last),
                evaluation.probabilities[first:last],
                evaluation.predicted[first:last],
                None if split.labels is None else split.labels[first:last],
            )
            file.writelines(prediction_lines(chunk, labels))


def read_predictions(path: Path, labels: LabelSpace) -> Predictions:
    """A whole predictions file, in its order.

    Raises
    ------
    UserError
        If there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; the recipe of that run does not name this split")
    chunks = list(read_prediction_chunks(path, labels))
    return Predictions(
        [row_id for chunk in chunks for row_id in chunk.ids],
        _stacked([chunk.probabilities for chunk in chunks]),
        _stacked([chunk.predicted for chunk in chunks]),
        None if chunks[0].true is None else _stacked([c.true for c in chunks if c.true is not None]),
    )


def _stacked(parts: list[Marks]) -> Marks:
    return sparse.vstack(parts, format="csr") if sparse.issparse(parts[0]) else np.concatenate(parts)


def read_prediction_chunks(path: Path, labels: LabelSpace, rows: int = CHUNK_ROWS) -> Iterator[Predictions]:
    """The rows of a predictions file, ``rows`` at a time, so that memory stays bounded."""
    number = {name: i for i, name in enumerate(labels.names)}
    with _readable(path), path.open(encoding="utf-8") as file:
        while lines := [json.loads(line) for line in itertools.islice(file, rows)]:
            true = None
            if "true" in lines[0]:
                marks = _marks([[number[n] for n in line["true"]] for line in lines], labels)
                true = marks.astype(np.float32) if labels.multi_label else marks.argmax(axis=1)
            yield Predictions(
                [line["id"] for line in lines],
                _probabilities([line["probabilities"] for line in lines], number, labels),
                _marks([[number[n] for n in line["labels"]] for line in lines], labels),
                true,
            )


def _marks(numbers: list[list[int]], labels: LabelSpace) -> Marks:
    """Lists of label indices as bool [rows, labels]; sparse with many labels."""
    if labels.many:
        return from_lists(numbers, len(labels.names)).astype(bool)
    return multi_hot_of_lists(numbers, len(labels.names))


def _probabilities(lines: list[dict[str, float]], number: dict[str, int], labels: LabelSpace) -> Marks:
    """The probabilities of some lines, float32 [rows, labels]; with many labels sparse, of those that are there."""
    if not labels.many:
        return np.array([[line[name] for name in labels.names] for line in lines], dtype=np.float32)
    offsets = np.cumsum([0, *map(len, lines)])
    numbers = np.array([number[name] for line in lines for name in line], dtype=np.int32)
    values = np.array([value for line in lines for value in line.values()], dtype=np.float32)
    found = sparse.csr_matrix((values, numbers, offsets), shape=(len(lines), len(number)))
    found.sort_indices()
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Let a file with anything else than predictions of these labels end in a sentence."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged, or has predictions of other labels ({type(error).__name__}: {error}); restore it"
        ) from error


def read_decisions(path: Path, labels: LabelSpace) -> tuple[Marks, Marks]:
    """The true labels and the decisions of a predictions file of a run, without its probabilities.

    Returns
    -------
    true, predicted : bool [rows, labels]
        Sparse with many labels.
    """
    number = {name: i for i, name in enumerate(labels.names)}
    true, predicted = [], []
    with _readable(path), path.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            true.append([number[name] for name in line["true"]])
            predicted.append([number[name] for name in line["labels"]])
    return _marks(true, labels), _marks(predicted, labels)


def rewrite_decisions(path: Path, predicted: Marks, labels: LabelSpace) -> None:
    """Replace the predicted labels in a predictions file, and nothing else.

    Parameters
    ----------
    path : Path
    predicted : bool [rows, labels]
    labels : LabelSpace
    """
    with (
        path.open(encoding="utf-8") as old,
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as new,
    ):
        for text, chosen in zip(old, predicted, strict=True):
            new.write(_dump(json.loads(text) | {"labels": _names(chosen, labels.names)}))


def _names(marks: Any, names: list[str]) -> list[str]:
    """The names of the marked labels of a row."""
    if sparse.issparse(marks):
        return [names[label] for label in marks.indices]
    return [name for name, on in zip(names, marks, strict=True) if on]


def _scores(probabilities: Any, row: int, names: list[str]) -> Iterator[tuple[str, float]]:
    """The names and probabilities of a row: of all labels, or of the kept ones in falling order."""
    if not sparse.issparse(probabilities):
        yield from zip(names, probabilities[row], strict=True)
        return
    part = slice(probabilities.indptr[row], probabilities.indptr[row + 1])
    values, numbers = probabilities.data[part], probabilities.indices[part]
    for i in np.lexsort((numbers, -values)):
        yield names[numbers[i]], values[i]


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
