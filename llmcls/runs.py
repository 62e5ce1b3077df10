"""Finished runs, read back: labels, predictions, metrics; what the commands that look at runs begin with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcls import UserMistake
from llmcls.files import read_json, replacing, write_json
from llmcls.intervals import bootstrap_intervals
from llmcls.labels import LabelSpace, as_marks
from llmcls.metrics import confusions, evaluate_predictions
from llmcls.thresholds import Thresholds, apply_thresholds, save_thresholds

SPLITS = ("validation", "test")


@dataclass
class Predictions:
    """A split's predictions file. probabilities: float32 [rows, labels]. predicted: bool [rows, labels].

    true: label values as a `Split` holds them, float32 [rows, labels] or int64 [rows].
    """

    ids: list[str]
    probabilities: np.ndarray
    predicted: np.ndarray
    true: np.ndarray


def labels_of(run: Path) -> LabelSpace:
    """The labels of a finished run.

    Raises
    ------
    UserMistake: there is no run, or it is not finished.
    """
    path = run / "model" / "labels.json"
    if not path.is_file() or not (run / "metrics.json").is_file():
        raise UserMistake(f"{run} is no finished run folder (no metrics.json or model/labels.json); train it first")
    return LabelSpace(**read_json(path))


def runs_in(folder: Path) -> list[Path]:
    """The finished runs of an experiment folder, or the run that ``folder`` is.

    Raises
    ------
    UserMistake: it is neither.
    """
    if (folder / "metrics.json").is_file():
        return [folder]
    found = sorted(folder.glob("run_*/metrics.json"), key=lambda p: (len(p.parent.name), p.parent.name))
    if not found:
        raise UserMistake(f"{folder} is neither a finished run folder nor a folder of runs; name outputs/.../run_0")
    return [path.parent for path in found]


def predicted_splits(run: Path) -> list[str]:
    """The splits that a run has predictions of."""
    return [split for split in SPLITS if (run / f"predictions_{split}.jsonl").is_file()]


def read_predictions(run: Path, split: str, labels: LabelSpace) -> Predictions:
    """A split's predictions, in the order of the file.

    Raises
    ------
    UserMistake: the run has none for that split.
    """
    path = run / f"predictions_{split}.jsonl"
    if not path.is_file():
        raise UserMistake(f"{run} has no {path.name}; its recipe names no {split} file")
    number = {name: i for i, name in enumerate(labels.names)}
    ids: list[str] = []
    probabilities: list[list[float]] = []
    decisions: list[list[int]] = []
    true: list[list[int]] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            ids.append(row["id"])
            probabilities.append([row["probabilities"][name] for name in labels.names])
            decisions.append([number[name] for name in row["labels"]])
            true.append([number[name] for name in row["true"]])
    marks = _marks(true, len(labels.names))
    values = marks.astype(np.float32) if labels.multi_label else marks.argmax(axis=1)
    return Predictions(ids, np.array(probabilities, np.float32), _marks(decisions, len(labels.names)), values)


def redecide(run: Path, labels: LabelSpace, thresholds: Thresholds) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Apply other thresholds to a finished run; returns each split's metrics (before, after).

    Rewrites thresholds.json, the decisions in the predictions, and metrics.json.
    """
    metrics = read_json(run / "metrics.json")
    save_thresholds(run / "thresholds.json", thresholds, labels.names)
    changes = {}
    for split in predicted_splits(run):
        found = read_predictions(run, split, labels)
        predicted = apply_thresholds(found.probabilities, thresholds, labels)
        true = as_marks(found.true, labels)
        before = metrics[split]
        metrics[split] = before | evaluate_predictions(found.probabilities, found.true, predicted, labels.names)
        metrics[split]["intervals"] = bootstrap_intervals(true, predicted)
        metrics[split]["confusions"] = confusions(true, predicted, labels.names)
        changes[split] = before, metrics[split]
        _rewrite_decisions(run / f"predictions_{split}.jsonl", predicted, labels)
    write_json(run / "metrics.json", metrics)
    return changes


def _rewrite_decisions(path: Path, predicted: np.ndarray, labels: LabelSpace) -> None:
    with (
        path.open(encoding="utf-8") as old,
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as new,
    ):
        for line, chosen in zip(old, predicted, strict=True):
            row = json.loads(line)
            row["labels"] = [name for name, on in zip(labels.names, chosen, strict=True) if on]
            new.write(json.dumps(row, ensure_ascii=False) + "\n")


def _marks(numbers: list[list[int]], width: int) -> np.ndarray:
    marks = np.zeros((len(numbers), width), dtype=bool)
    for row, chosen in enumerate(numbers):
        marks[row, chosen] = True
    return marks
