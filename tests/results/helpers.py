"""Finished runs made without training: the files that a training writes, from given probabilities."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from llmcls.common.files import write_json, write_text
from llmcls.data.labels import LabelSpace, multi_hot
from llmcls.data.splits import Split
from llmcls.evaluation.calibration import Calibration, save_calibration
from llmcls.evaluation.metrics import evaluate_predictions
from llmcls.evaluation.outcome import Evaluation, uncertainty
from llmcls.evaluation.rule_comparison import compare_rules
from llmcls.evaluation.thresholds import apply_thresholds, fixed_thresholds, save_thresholds
from llmcls.evaluation.tuning import Tuning
from llmcls.recipe.load import recipe_to_yaml
from llmcls.recipe.schema import Recipe
from llmcls.results.predictions import write_predictions
from llmcls.results.run_folder import RunFolder, recipe_of_run

MULTI = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


class Ids:
    """The table of a split: its ids, "r0", "r1", ... or the given ones."""

    def __init__(self, ids: list[str]) -> None:
        self._ids = ids

    def __getitem__(self, rows: slice) -> dict[str, list[str]]:
        return {"id": self._ids[rows]}


def make_split(values: np.ndarray | None, rows: int, ids: list[str] | None = None) -> Split:
    """A split with these labels and no texts."""
    table: Any = Ids(ids or [f"r{i}" for i in range(rows)])
    return Split("test", "test.csv", [], np.ones(rows, dtype=np.int32), values, table)


def random_case(seed: int, rows: int = 200, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [rows, 2], float32, and the labels that they predict with some noise."""
    rng = np.random.default_rng(seed)
    true = np.random.default_rng(99).random((rows, 2)) < 0.4
    probabilities = np.clip(np.where(true, 0.8, 0.2) + rng.normal(0, noise, true.shape), 0.001, 0.999)
    return probabilities.astype(np.float32), true.astype(np.float32)


def write_run(
    run: RunFolder, recipe: Recipe, splits: dict[str, tuple[np.ndarray, np.ndarray]], seed: int = 1,
    labels: LabelSpace = MULTI, ids: list[str] | None = None,
) -> RunFolder:  # fmt: skip
    """Write the files of a finished run.

    Parameters
    ----------
    run : RunFolder
    recipe : Recipe
    splits : dict
        Probabilities and label values of each split.
    seed : int
    labels : LabelSpace
    ids : list of str, optional
        Row ids.
    """
    text = recipe_to_yaml(recipe_of_run(recipe, seed))
    write_text(run.recipe, text)
    write_text(run.model_recipe, text)
    write_json(run.labels, asdict(labels))
    thresholds = fixed_thresholds(len(labels.names))
    save_thresholds(run.thresholds, thresholds, labels.names)
    save_calibration(run.calibration, Calibration())
    training = {"seconds": 2.0, "samples_per_second": 10.0, "tokens_per_second": 100.0, "loss": 0.2, "first_loss": 0.7}
    history = [
        {"step": 5, "train_loss": 0.7, "validation": {"loss": 0.6, "f1_micro": 0.5}},
        {"step": 9, "train_loss": 0.2},
    ]
    metrics: dict[str, Any] = {
        "seed": seed, "steps": 9, "best_step": 5, "epochs": 1, "training": training, "labels": labels.names,
        "history": history, "at_half": {}, **thresholds.described(),
    }  # fmt: skip
    for split, (probabilities, values) in splits.items():
        predicted = apply_thresholds(probabilities, thresholds, labels)
        measured = {"loss": 0.5, **evaluate_predictions(probabilities, values, predicted, labels.names, labels.binary)}
        metrics["at_half"][split] = {k: v for k, v in measured.items() if not isinstance(v, dict)}
        metrics[split] = measured | uncertainty(multi_hot(values, len(labels.names)), predicted, labels)
        evaluation = Evaluation(probabilities, predicted, measured)
        write_predictions(run.predictions(split), make_split(values, len(values), ids), evaluation, labels)
    scored = {split: (p, multi_hot(values, len(labels.names))) for split, (p, values) in splits.items()}
    metrics["threshold_rules"] = compare_rules(scored, labels, Tuning("fixed"))
    write_json(run.metrics, metrics)
    return run
