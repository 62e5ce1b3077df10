"""Evaluation: every row of a split scored exactly once, whatever the number of ranks, then measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from llmcls.batching import collate, default_micro_batch_tokens, plan_evaluation
from llmcls.calibration import Calibration, calibrated
from llmcls.data import Split
from llmcls.engine import sum_over_ranks, unwrapped
from llmcls.files import replacing
from llmcls.intervals import bootstrap_intervals
from llmcls.labels import LabelSpace
from llmcls.losses import build_loss
from llmcls.metrics import confusions, evaluate_predictions
from llmcls.recipe import Recipe
from llmcls.thresholds import Thresholds, apply_thresholds

# Rows scored between two writes of a prediction. Training and `predict` cut a split at the same places, so
# that both put a row into the same batch and get the same logits.
WINDOW = 4096


@dataclass
class Scorer:
    """A prepared model and how to run it over a split.

    max_tokens: tokens at once. packed: whether the model takes packed rows.
    """

    accelerator: Accelerator
    model: nn.Module
    labels: LabelSpace
    pad_token_id: int
    max_tokens: int
    packed: bool


@dataclass
class Evaluation:
    """What a model says of a split. probabilities: float32 [rows, labels]; predicted: bool [rows, labels]."""

    probabilities: np.ndarray
    predicted: np.ndarray
    metrics: dict[str, Any]


def make_scorer(
    accelerator: Accelerator, model: nn.Module, labels: LabelSpace, pad_token_id: int, recipe: Recipe
) -> Scorer:
    """A scorer with the recipe's evaluation batch: without activations to keep, four times the training one."""
    given, budget = recipe.train.eval_batch_size, recipe.train.micro_batch_tokens
    # "auto" is found while training; a prediction must cut its batches as the run's own evaluation did.
    training = budget if isinstance(budget, int) else default_micro_batch_tokens(recipe)
    tokens = given * recipe.data.max_length if given else 4 * training
    return Scorer(accelerator, model, labels, pad_token_id, tokens, unwrapped(model).packs)


def score_windows(scorer: Scorer, split: Split, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, logits float32 [window, labels]) in the order of the file, from row ``start`` on.

    Parameters
    ----------
    start: a multiple of `WINDOW`.
    """
    was_training = scorer.model.training
    scorer.model.eval()
    try:
        for first in range(start, len(split), WINDOW):
            yield first, _score_window(scorer, split, first, min(len(split), first + WINDOW))
    finally:
        scorer.model.train(was_training)


@torch.no_grad()
def _score_window(scorer: Scorer, split: Split, first: int, last: int) -> np.ndarray:
    accelerator = scorer.accelerator
    device = accelerator.device
    plan = plan_evaluation(split.lengths[first:last], accelerator.num_processes, scorer.max_tokens, scorer.packed)
    # The last column counts visits: gathering by row number cannot lose or double a row unnoticed.
    scores = torch.zeros(last - first, len(scorer.labels.names) + 1, device=device)
    for rows in plan[accelerator.process_index]:
        batch = collate(split, first + rows, scorer.pad_token_id, scorer.packed).to(device)
        logits = scorer.model(batch.input_ids, batch.lengths, batch.windows)
        if len(rows):
            where = torch.from_numpy(rows).to(device)
            scores[where, :-1] = logits.float()
            scores[where, -1] += 1
    scores = sum_over_ranks(accelerator, scores).cpu()
    visits = scores[:, -1]
    if not bool((visits == 1).all()):
        raise RuntimeError(f"rows {first} to {last}: visited between {visits.min()} and {visits.max()} times")
    return scores[:, :-1].numpy()


def score_split(scorer: Scorer, split: Split) -> np.ndarray:
    """logits float32 [rows, labels] of the whole split, the same on every rank."""
    return np.concatenate([logits for _, logits in score_windows(scorer, split)])


def evaluate_logits(
    logits: np.ndarray,
    split_labels: np.ndarray,
    labels: LabelSpace,
    thresholds: Thresholds,
    calibration: Calibration | None = None,
) -> Evaluation:
    """Probabilities, decisions and metrics of scored rows.

    ``metrics["loss"]`` is the mean cross-entropy over samples, uncalibrated, whatever loss was trained with.
    """
    probabilities = calibrated(logits, calibration or Calibration(), labels)
    predicted = apply_thresholds(probabilities, thresholds, labels)
    metrics = evaluate_predictions(probabilities, split_labels, predicted, labels.names)
    per_sample = build_loss(labels.problem_type)(torch.tensor(logits), torch.tensor(split_labels))
    return Evaluation(probabilities, predicted, {"loss": float(per_sample.double().mean()), **metrics})


def uncertainty(true: np.ndarray, predicted: np.ndarray, labels: LabelSpace) -> dict[str, Any]:
    """What a final evaluation says besides its metrics: bootstrap intervals and the commonest confusions."""
    return {
        "intervals": bootstrap_intervals(true, predicted),
        "confusions": confusions(true, predicted, labels.names),
    }


def prediction_lines(
    ids: list[str], probabilities: np.ndarray, predicted: np.ndarray, true: np.ndarray | None, labels: LabelSpace
) -> Iterator[str]:
    """One JSON line a row: id, every label's probability, the labels above threshold, the true ones if known."""
    names = labels.names
    for i, row_id in enumerate(ids):
        line: dict[str, Any] = {
            "id": row_id,
            "probabilities": {n: round(float(p), 9) for n, p in zip(names, probabilities[i], strict=True)},
            "labels": [n for n, on in zip(names, predicted[i], strict=True) if on],
        }
        if true is not None:
            is_true = true[i] if true.ndim == 2 else np.arange(len(names)) == true[i]
            line["true"] = [n for n, on in zip(names, is_true, strict=True) if on]
        yield json.dumps(line, ensure_ascii=False) + "\n"


def write_predictions(path: Path, split: Split, evaluation: Evaluation, labels: LabelSpace) -> None:
    """Write a whole split's predictions as JSONL."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for first in range(0, len(split), WINDOW):
            part = slice(first, first + WINDOW)
            true = None if split.labels is None else split.labels[part]
            ids = split.ids(first, min(len(split), first + WINDOW))
            file.writelines(
                prediction_lines(ids, evaluation.probabilities[part], evaluation.predicted[part], true, labels)
            )
