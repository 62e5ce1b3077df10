"""Distillation: what trained runs say about texts without labels becomes a part of the training rows of another model.

The labelled rows keep their labels. The other texts get the probabilities of the teacher, the mean of those of several,
as soft labels. So the student aims at them with the loss of any training.

Notes
-----
Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", at temperature 1. They raise it where the
student reads the texts that the teacher was trained on: the teacher is sure of them, and says little beside the label.
On texts that it has not seen its probabilities are those that it gives anyone, and a student that learns them as they
are is as calibrated as the teacher.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from llmcls.common.files import read_json, replacing, write_json
from llmcls.common.user_error import UserError
from llmcls.data.holdout import rows_of_split
from llmcls.data.labels import LabelSpace, label_space
from llmcls.data.soft_labels import read_hard_labels
from llmcls.data.subset import chosen_rows
from llmcls.data.tables import cell_text, read_table, require_columns
from llmcls.prediction.predict_table import signature
from llmcls.recipe.schema import Recipe
from llmcls.recipe.shareable import without_paths
from llmcls.results.finished_runs import FinishedRun, require_same_labels
from llmcls.results.run_folder import ExperimentFolder
from llmcls.results.saved_labels import require_few

# Smaller probabilities of named classes are not written; the others are raised to a sum of 1.
SMALLEST = 1e-4


@dataclass(frozen=True)
class Distillation:
    """A student, its teachers, and the files between them.

    Attributes
    ----------
    recipe : Recipe
        Of the student, with the name of its runs. Its training file has the labelled rows.
    teachers : list of FinishedRun
    texts : str
        The table of texts without labels.
    """

    recipe: Recipe
    teachers: list[FinishedRun]
    texts: str

    @property
    def folder(self) -> Path:
        """Beside the runs of the student."""
        return ExperimentFolder.of(self.recipe).path / "distillation"

    @property
    def predictions(self) -> Path:
        """What the teachers say about the texts."""
        return self.folder / "teacher.jsonl"

    @property
    def train(self) -> Path:
        """The training rows of the student."""
        return self.folder / "train.jsonl"

    @property
    def validation(self) -> Path:
        """The labelled rows that ``data.validation_split`` holds out."""
        return self.folder / "validation.jsonl"

    @property
    def state(self) -> Path:
        """What the files were made from, and how many rows they have."""
        return self.folder / "distillation.json"

    @property
    def names(self) -> list[str]:
        """The teachers as a report names them, without folders of this machine."""
        recipes = [without_paths(run.recipe) for run in self.teachers]
        return [f"{r.model.model_name} on {r.data.dataset_name}, seed {r.exp.seeds[0]}" for r in recipes]


def check_distillation(plan: Distillation) -> LabelSpace:
    """The labels of the student, if its teachers have the same, and the texts are there.

    Raises
    ------
    UserError
        If the labels or their kind differ, a column is missing, or the folder has the files of another distillation.
    """
    recipe, teacher = plan.recipe, plan.teachers[0]
    require_same_labels(plan.teachers)
    require_few(plan.teachers[0].labels, "llmcls distill")
    table = read_table(recipe.data.train_csv, "data.train_csv", recipe.data)
    labels = label_space(recipe, table)
    if labels.problem_type != teacher.labels.problem_type:
        raise UserError(
            f"{teacher.folder.path} is {teacher.labels.problem_type}, the recipe {labels.problem_type}; both must be "
            "the same"
        )
    apart = sorted(set(labels.names) ^ set(teacher.labels.names))
    if apart:
        whose = "the recipe" if apart[0] in labels.names else str(teacher.folder.path)
        raise UserError(f"only {whose} has the label {apart[0]!r} ({len(apart)} differ); both need the same labels")
    texts = read_table(plan.texts, "--texts", recipe.data, insist=False)
    for columns in (recipe.data.text_columns(), teacher.recipe.data.text_columns()):
        require_columns(texts, columns, plan.texts, "--texts")
    found = _state(plan)
    if found and found["made_from"] != _made_from(plan) and not recipe.exp.overwrite:
        raise UserError(
            f"{plan.folder} is from another teacher, other texts or another training file; choose another --name, or "
            "set exp.overwrite=true"
        )
    return labels


def is_predicted(plan: Distillation) -> bool:
    """Whether the teachers have said what they say about these texts."""
    return _state(plan).get("made_from") == _made_from(plan) and plan.predictions.is_file()


def note_predicted(plan: Distillation) -> None:
    """Note that the predictions are there, from these teachers and texts."""
    write_json(plan.state, {"made_from": _made_from(plan), "teachers": [str(r.folder.path) for r in plan.teachers]})


def write_rows(plan: Distillation, labels: LabelSpace) -> dict[str, Any]:
    """Write the training rows of the student, unless they are there; returns how many have which labels.

    Parameters
    ----------
    plan : Distillation
        Predicted.
    labels : LabelSpace
        From `check_distillation`.
    """
    state = _state(plan)
    if "labelled" in state and plan.train.is_file():
        return state
    data = plan.recipe.data
    table = read_table(data.train_csv, "data.train_csv", data)
    if data.validation_split is not None:
        held = rows_of_split(plan.recipe, "validation", labels)
        _write(plan.validation, _labelled(table.select(held), plan.recipe))
    kept = _kept(plan.recipe, table, labels)
    texts = read_table(plan.texts, "--texts", data, insist=False)
    written = _write(plan.train, chain(_labelled(kept, plan.recipe), _taught(texts, plan, labels)))
    taught = written - len(kept)
    state |= {"labelled": len(kept), "taught": taught, "empty": len(texts) - taught}
    write_json(plan.state, state)
    return state


def overrides_of(plan: Distillation) -> list[str]:
    """What the recipe of the student changes to be trained with the rows of `write_rows`."""
    values: dict[str, Any] = {
        "data.train_csv": str(plan.train),
        "data.train_rows": None,
        "data.soft_labels": True,
        "data.distilled_from": plan.names,
        "exp.run_name": plan.recipe.exp.run_name,
    }
    if plan.recipe.data.validation_split is not None:
        values |= {"data.validation_split": None, "data.val_csv": str(plan.validation)}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _state(plan: Distillation) -> dict[str, Any]:
    found = read_json(plan.state) if plan.state.is_file() else {}
    if not isinstance(found, dict) or (found and "made_from" not in found):
        raise UserError(f"{plan.state} is damaged; remove {plan.folder}")
    return found


def _made_from(plan: Distillation) -> str:
    """A digest of the teachers, the texts, and what the recipe says about the labelled rows."""
    data = plan.recipe.data
    chosen = [
        data.text_columns(), data.label_columns, data.id_column, data.validation_split, data.validation_split_seed,
        data.train_rows, data.train_rows_seed, data.label_separator, data.hierarchy_separator,
    ]  # fmt: skip
    digest = hashlib.sha256(Path(data.train_csv).read_bytes() + repr(chosen).encode())
    for run in plan.teachers:
        digest.update(signature(run, plan.texts).encode())
    return digest.hexdigest()


def _kept(recipe: Recipe, table: datasets.Dataset, labels: LabelSpace) -> datasets.Dataset:
    """The labelled rows that the recipe trains on."""
    held_in = rows_of_split(recipe, "train", labels)
    kept = table if held_in is None else table.select(held_in)
    cells = {column: kept[column][:] for column in labels.columns}
    found = read_hard_labels(cells, list(range(len(kept))), labels, recipe.data.train_csv, recipe.data)
    rows = chosen_rows(np.array(found, np.float32 if labels.multi_label else np.int64), labels, recipe.data)
    return kept if rows is None else kept.select(rows)


def _write(path: Path, rows: Iterator[dict[str, str]]) -> int:
    """Write rows as JSONL; returns how many there are."""
    number = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return number


def _labelled(table: datasets.Dataset, recipe: Recipe) -> Iterator[dict[str, str]]:
    """The rows of a table with labels, each cell as text."""
    data = recipe.data
    columns = [*([data.id_column] if data.id_column else []), *data.text_columns(), *data.label_columns]
    for row in table:
        yield {column: cell_text(row[column]) for column in columns}


def _taught(texts: datasets.Dataset, plan: Distillation, labels: LabelSpace) -> Iterator[dict[str, str]]:
    """The texts that are not empty, with the probabilities of the teachers in the label columns."""
    data = plan.recipe.data
    with plan.predictions.open(encoding="utf-8") as lines:
        for number, (row, line) in enumerate(zip(texts, lines, strict=True)):
            cells = {column: cell_text(row[column]) for column in data.text_columns()}
            if any(cell.strip() for cell in cells.values()):
                taught = {data.id_column: f"taught-{number}"} if data.id_column else {}
                yield taught | cells | label_cells(json.loads(line)["probabilities"], labels)


def label_cells(probabilities: dict[str, float], labels: LabelSpace) -> dict[str, str]:
    """Probabilities as cells of the label columns.

    Parameters
    ----------
    probabilities : dict
        By label.
    labels : LabelSpace

    Examples
    --------
    >>> kinds = LabelSpace(["a", "b", "c"], ["kind"], "single_label_classification", ["a", "b", "c"])
    >>> label_cells({"a": 0.75, "b": 0.24999, "c": 0.00001}, kinds)
    {'kind': '{"a": 0.750008, "b": 0.249992}'}
    >>> label_cells({"a": 0.75, "b": 0.25}, LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification"))
    {'a': '0.75', 'b': '0.25'}
    """
    if labels.class_values is None and labels.separator is None and not labels.lists:
        # A binary column has the probability of the second class.
        return {column: f"{probabilities[column]:.6g}" for column in labels.columns}
    least = min(SMALLEST, max(probabilities.values()))
    named = {name: p for name, p in probabilities.items() if p >= least}
    total = 1.0 if labels.multi_label else sum(named.values())
    shares = {name: float(f"{p / total:.6g}") for name, p in named.items()}
    return {labels.columns[0]: json.dumps(shares, ensure_ascii=False)}
