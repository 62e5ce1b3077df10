"""Finished runs, read back: what the commands that work with trained runs start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.common.files import read_json, write_json
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import Marks
from llmcls.evaluation.metrics import evaluate_predictions
from llmcls.evaluation.outcome import uncertainty
from llmcls.evaluation.rule_comparison import compare_rules
from llmcls.evaluation.thresholds import (
    Thresholds,
    apply_thresholds,
    fixed_thresholds,
    load_thresholds,
    save_thresholds,
)
from llmcls.evaluation.top_metrics import Frequencies, metrics_with_labels, top_uncertainty
from llmcls.evaluation.top_scores import decide_top, shared_threshold
from llmcls.evaluation.tuning import Tuning, tune_thresholds
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import metric_direction
from llmcls.recipe.schema import Recipe
from llmcls.results.predictions import read_predictions, rewrite_decisions
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from llmcls.results.saved_labels import read_label_space
from llmcls.results.seal import require_intact, require_intact_labels, reseal


@dataclass
class FinishedRun:
    """A finished run, opened.

    Attributes
    ----------
    folder : RunFolder
    recipe : Recipe
    labels : LabelSpace
    mixed_precision : str, optional
        What the profile computed in; None if unknown.
    """

    folder: RunFolder
    recipe: Recipe
    labels: LabelSpace
    mixed_precision: str | None = None


def open_run(folder: RunFolder, base_model: str | None = None) -> FinishedRun:
    """Open a finished run.

    Parameters
    ----------
    folder : RunFolder
    base_model : str, optional
        Where the pretrained model is now, if it moved since training.

    Raises
    ------
    UserError
        If there is no run, or it is not finished, or damaged.
    """
    labels = labels_of(folder)
    require_intact(folder)
    recipe = load_recipe(folder.model_recipe)
    if base_model:
        recipe = replace(recipe, model=replace(recipe.model, model_name=base_model))
    # A profile may have trained a float32 recipe in bf16; predictions then use bf16 too.
    precision = _precision(folder.environment) if folder.environment.exists() else None
    return FinishedRun(folder, recipe, labels, precision)


def _precision(environment: Path) -> str | None:
    """What the profile of a run computed in."""
    saved = read_json(environment)
    precision = saved.get("mixed_precision") if isinstance(saved, dict) else ""
    if precision not in ("no", "bf16", "fp16", "fp8", None):
        raise UserError(f"{environment} is damaged: mixed_precision is {precision!r}; restore it")
    return precision


def labels_of(folder: RunFolder) -> LabelSpace:
    """The labels of a finished run.

    Raises
    ------
    UserError
        If there is no run, or it is not finished.
    """
    if not folder.finished:
        why = "was started but not finished" if folder.recipe.is_file() else "is not a run folder"
        raise UserError(f"{folder.path} {why} (no metrics.json, or no recipe or labels in model/); train it to the end")
    require_intact_labels(folder)
    return read_label_space(folder.labels)


def frequencies_of(run: FinishedRun) -> Frequencies:
    """How frequent the labels were in the training of a run."""
    found, train = read_json(run.folder.metrics)["data"]["train"], run.recipe.train
    counts = np.array([found["labels"][name] for name in run.labels.names], dtype=np.int64)
    return Frequencies(counts, found["rows"], train.propensity_a, train.propensity_b)


def require_same_labels(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs that cannot be averaged.

    Raises
    ------
    UserError
        If their labels differ.
    """
    for run in runs:
        if run.labels != runs[0].labels:
            raise UserError(
                f"{run.folder.path} has other labels than {runs[0].folder.path}; "
                "an ensemble needs runs with the same labels"
            )


def runs_in(path: Path) -> list[RunFolder]:
    """The finished runs of an experiment folder, or the run that ``path`` is.

    Raises
    ------
    UserError
        If it is neither.
    """
    if RunFolder(path).metrics.is_file():
        return [RunFolder(path)]
    found = [RunFolder(p) for p in path.glob("run_*") if RunFolder(p).metrics.is_file()]
    if not found:
        raise UserError(f"{path} is neither a finished run folder nor a folder of runs; name outputs/.../run_0")
    # run_10 comes after run_9.
    return sorted(found, key=lambda run: (len(run.path.name), run.path.name))


def finished_runs(recipe: Recipe) -> list[RunFolder]:
    """The finished runs of a recipe, in the order of its seeds.

    Raises
    ------
    UserError
        If there is none.
    """
    root = ExperimentFolder.of(recipe).path
    try:
        return runs_in(root)
    except UserError:
        raise UserError(
            f"{root} has no finished run of {recipe.source}; train it first, or name a folder with --run"
        ) from None


def best_run(recipe: Recipe) -> RunFolder:
    """The finished run of a recipe with the best validation metric; the first one without validation."""
    name = selection_metric(recipe)

    def value(run: RunFolder) -> float:
        found = read_json(run.metrics).get("validation", {}).get(name)
        return float("-inf") if found is None else metric_direction(name) * found

    return max(finished_runs(recipe), key=value)


@dataclass(frozen=True)
class Retuned:
    """Other thresholds for a finished run, and what they would change.

    Attributes
    ----------
    before : Thresholds, optional
        None if thresholds.json is missing or damaged.
    after : Thresholds
    metrics : dict
        The content of metrics.json with the new thresholds.
    changes : dict
        The metrics of each split, before and after.
    predicted : dict of bool [rows, labels]
        The new decisions of each split; with many labels sparse.
    """

    before: Thresholds | None
    after: Thresholds
    metrics: dict[str, Any]
    changes: dict[str, tuple[dict[str, Any], dict[str, Any]]]
    predicted: dict[str, Marks]


def retune(run: FinishedRun, tuning: Tuning) -> Retuned:
    """Tune the thresholds of a finished run again, and decide its predictions with them. Writes nothing.

    Raises
    ------
    UserError
        If the run has classes, which need no thresholds, or no validation predictions to tune on.
    """
    folder, labels = run.folder, run.labels
    if not (labels.multi_label or labels.binary):
        raise UserError(
            f"{folder.path} has one of several classes per text: the most probable one is taken, without thresholds"
        )
    read = {split: read_predictions(folder.predictions(split), labels) for split in folder.predicted_splits()}
    scored = {split: (found.probabilities, found.true_marks(labels)) for split, found in read.items()}
    tune = shared_threshold if labels.many else tune_thresholds
    if tuning.rule == "fixed":
        thresholds = fixed_thresholds(len(labels.names), tuning.fixed, tuning.at_least_one)
    elif "validation" in scored:
        thresholds = tune(*scored["validation"], labels, tuning)
    else:
        raise UserError(f"{folder.path} has no predictions_validation.jsonl to tune on; use --rule fixed --value 0.5")
    metrics = read_json(folder.metrics)
    metrics |= thresholds.described()
    if not labels.many:
        metrics["threshold_rules"] = compare_rules(scored, labels, tuning)
    changes, decided = {}, {}
    for split, found in read.items():
        before, marks = metrics[split], scored[split][1]
        if labels.many:
            predicted = decide_top(found.probabilities, thresholds, labels)
            metrics[split] = before | metrics_with_labels(marks, predicted, labels, frequencies_of(run))
            metrics[split] |= top_uncertainty(marks, predicted, labels)
        else:
            predicted = apply_thresholds(found.probabilities, thresholds, labels)
            metrics[split] = before | evaluate_predictions(
                found.probabilities, found.known_true, predicted, labels.names, labels.binary
            )
            metrics[split] |= uncertainty(marks, predicted, labels)
        changes[split] = before, metrics[split]
        decided[split] = predicted
    return Retuned(_stored_thresholds(folder, labels), thresholds, metrics, changes, decided)


def _stored_thresholds(folder: RunFolder, labels: LabelSpace) -> Thresholds | None:
    """The thresholds of a run; None if their file is missing or damaged, for they can be made again."""
    try:
        return load_thresholds(folder.thresholds, labels.names)
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None


def apply_retuned(run: FinishedRun, retuned: Retuned) -> None:
    """Write thresholds.json, the predicted labels in the predictions, and metrics.json of a run with new thresholds."""
    folder, labels = run.folder, run.labels
    save_thresholds(folder.thresholds, retuned.after, labels.names)
    for split, predicted in retuned.predicted.items():
        rewrite_decisions(folder.predictions(split), predicted, labels)
    write_json(folder.metrics, retuned.metrics)
    reseal(folder, [folder.thresholds, folder.metrics, *(folder.predictions(split) for split in retuned.predicted)])
