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

from llmcls.common.files import replacing
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace, multi_hot, multi_hot_of_lists
from llmcls.data.splits import Split
from llmcls.evaluation.scoring import CHUNK_ROWS, Evaluation


@dataclass
class Predictions:
    """Some rows of a predictions file.

    Attributes
    ----------
    ids : list of str
    probabilities : float32 [rows, labels]
    predicted : bool [rows, labels]
    true : float32 [rows, labels] or int64 [rows], optional
        Label values as in a `Split`; None if the file has none.
    """

    ids: list[str]
    probabilities: np.ndarray
    predicted: np.ndarray
    true: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def known_true(self) -> np.ndarray:
        """The label values of predictions that have them, as those of a run do.

        Raises
        ------
        ValueError
            If the predictions have none.
        """
        if self.true is None:
            raise ValueError("these predictions were made without true labels")
        return self.true

    def true_marks(self, labels: LabelSpace) -> np.ndarray:
        """The true labels, bool [rows, labels]."""
        return multi_hot(self.known_true, len(labels.names))


def prediction_lines(
    predictions: Predictions, labels: LabelSpace, kept: np.ndarray | None = None, sets: np.ndarray | None = None
) -> Iterator[str]:
    """One JSON line per row: id, the probability of every label, the predicted labels, and the true ones if known.

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
        scores = zip(names, predictions.probabilities[i], strict=True)
        line: dict[str, Any] = {
            "id": row_id,
            "probabilities": {name: round(float(p), 9) for name, p in scores},
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
        np.concatenate([chunk.probabilities for chunk in chunks]),
        np.concatenate([chunk.predicted for chunk in chunks]),
        None if chunks[0].true is None else np.concatenate([c.true for c in chunks if c.true is not None]),
    )


def read_prediction_chunks(path: Path, labels: LabelSpace, rows: int = CHUNK_ROWS) -> Iterator[Predictions]:
    """The rows of a predictions file, ``rows`` at a time, so that memory stays bounded."""
    number = {name: i for i, name in enumerate(labels.names)}
    with _readable(path), path.open(encoding="utf-8") as file:
        while lines := [json.loads(line) for line in itertools.islice(file, rows)]:
            true = None
            if "true" in lines[0]:
                marks = multi_hot_of_lists([[number[n] for n in line["true"]] for line in lines], len(number))
                true = marks.astype(np.float32) if labels.multi_label else marks.argmax(axis=1)
            yield Predictions(
                [line["id"] for line in lines],
                np.array([[line["probabilities"][n] for n in labels.names] for line in lines], dtype=np.float32),
                multi_hot_of_lists([[number[n] for n in line["labels"]] for line in lines], len(number)),
                true,
            )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Let a file with anything else than predictions of these labels end in a sentence."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged, or has predictions of other labels ({type(error).__name__}: {error}); restore it"
        ) from error


def read_decisions(path: Path, labels: LabelSpace) -> tuple[np.ndarray, np.ndarray]:
    """The true labels and the decisions of a predictions file of a run, without its probabilities.

    Returns
    -------
    true, predicted : bool [rows, labels]
    """
    number = {name: i for i, name in enumerate(labels.names)}
    true, predicted = [], []
    with _readable(path), path.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            true.append([number[name] for name in line["true"]])
            predicted.append([number[name] for name in line["labels"]])
    return multi_hot_of_lists(true, len(number)), multi_hot_of_lists(predicted, len(number))


def rewrite_decisions(path: Path, predicted: np.ndarray, labels: LabelSpace) -> None:
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


def _names(marks: np.ndarray, names: list[str]) -> list[str]:
    return [name for name, on in zip(names, marks, strict=True) if on]


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
