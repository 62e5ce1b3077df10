"""The list of texts to label next: the columns of the pool, empty label cells, and what the run says of each text."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from llmcls.common.files import replacing
from llmcls.data.labels import LabelSpace
from llmcls.data.tables import cell_text
from llmcls.results.prediction_formats import joined

# What the list has besides the columns of the pool and of the labels. A pool that has them comes from an earlier list.
SUGGESTIONS = ("suggested", "suggested_probability", "unsure_about", "uncertainty", "stands_for")


@dataclass(frozen=True)
class Suggestions:
    """What a run says of the chosen texts.

    Attributes
    ----------
    probabilities : float32 [rows, labels]
    decided : bool [rows, labels]
    unsure_about : int64 [rows]
        The label in question.
    uncertainty : float32 [rows]
    stands_for : int64 [rows]
        Similar texts that the run is unsure of, too.
    """

    probabilities: np.ndarray
    decided: np.ndarray
    unsure_about: np.ndarray
    uncertainty: np.ndarray
    stands_for: np.ndarray


def write_label_list(
    path: Path, table: datasets.Dataset, suggestions: Suggestions, labels: LabelSpace, separator: str = ","
) -> None:
    """Write the list as CSV, in UTF-8 with the mark by which spreadsheets know it.

    Parameters
    ----------
    path : Path
    table : datasets.Dataset
        The chosen rows of the pool, in the order of the list.
    suggestions : Suggestions
        In the same order.
    labels : LabelSpace
    separator : str
        Between cells.
    """
    kept = [name for name in table.column_names if name not in SUGGESTIONS and name not in labels.columns]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        writer.writerow([*kept, *labels.columns, *SUGGESTIONS])
        for i, row in enumerate(table):
            marks = np.flatnonzero(suggestions.decided[i])
            said = [
                suggested_cell(marks, labels),
                "|".join(f"{suggestions.probabilities[i, label]:.3f}" for label in _shown(marks, labels)),
                labels.names[suggestions.unsure_about[i]],
                f"{suggestions.uncertainty[i]:.3f}",
                int(suggestions.stands_for[i]),
            ]
            writer.writerow([*(cell_text(row[name]) for name in kept), *("" for _ in labels.columns), *said])


def suggested_cell(marks: np.ndarray, labels: LabelSpace) -> str:
    """The labels that a run gives, as the label column has them, so that they can be copied there.

    Parameters
    ----------
    marks : int64 [given labels]
    labels : LabelSpace

    Examples
    --------
    >>> suggested_cell(np.array([0, 2]), LabelSpace(["a", "b", "c"], ["t"], "multi_label_classification", None, ";"))
    'a;c'
    >>> suggested_cell(np.array([1]), LabelSpace(["not_spam", "spam"], ["spam"], "binary_classification"))
    '1'
    """
    names = [labels.names[label] for label in marks]
    if labels.binary and labels.class_values is None and len(labels.columns) == 1:
        return str(int(marks[0]))
    if labels.lists:
        return json.dumps(names, ensure_ascii=False)
    if labels.multi_label and labels.separator is not None:
        return labels.separator.join(names)
    if labels.multi_label and labels.names == labels.columns and len(labels.names) == 1:
        return str(len(names))
    # Where each label has a column, no cell has them all.
    return joined(names, labels)


def _shown(marks: np.ndarray, labels: LabelSpace) -> np.ndarray:
    """The labels whose probabilities are shown: those that are suggested; for one column of 0 and 1, its own."""
    return np.array([0]) if labels.multi_label and len(labels.names) == 1 else marks
