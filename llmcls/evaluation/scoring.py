"""Scoring a split, with every row scored exactly once on any number of ranks, and evaluating the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from llmcls.common.heartbeat import beat
from llmcls.common.user_error import UserError
from llmcls.data.ahead import ahead, depth_for
from llmcls.data.batches import Batch, collate, plan_evaluation, send
from llmcls.data.labels import LabelSpace
from llmcls.data.splits import Split
from llmcls.engine.accelerator import sum_over_ranks, unwrapped
from llmcls.evaluation.calibration import Calibration, calibrated
from llmcls.evaluation.metrics import evaluate_predictions
from llmcls.evaluation.not_finite import advice, named
from llmcls.evaluation.outcome import CHUNK_ROWS, Evaluation
from llmcls.evaluation.thresholds import Thresholds, apply_thresholds
from llmcls.model.losses import build_loss
from llmcls.recipe.defaults import eval_batch_tokens
from llmcls.recipe.schema import Recipe


@dataclass
class Scorer:
    """A prepared model and the settings to score a split with it.

    Attributes
    ----------
    accelerator : Accelerator
    model : nn.Module
        As `llmcls.engine.accelerator.prepare` returned it.
    labels : LabelSpace
    pad_token_id : int
    max_tokens : int
        Tokens of a forward pass.
    packed : bool
        Whether the model reads packed rows.
    advice : str
        What to do if scores are not numbers.
    """

    accelerator: Accelerator
    model: nn.Module
    labels: LabelSpace
    pad_token_id: int
    max_tokens: int
    packed: bool
    advice: str = ""


@dataclass(frozen=True)
class Reading:
    """What a forward pass is asked for.

    Attributes
    ----------
    width : int
        Numbers per row.
    of_batch : callable
        From a batch on the device to its numbers, float [rows, width].
    """

    width: int
    of_batch: Callable[[Batch], torch.Tensor]


def make_scorer(
    accelerator: Accelerator, model: nn.Module, labels: LabelSpace, pad_token_id: int, recipe: Recipe
) -> Scorer:
    """A scorer with the evaluation batch size of a recipe."""
    help_with = advice(recipe, accelerator.mixed_precision)
    max_tokens = eval_batch_tokens(recipe)
    return Scorer(accelerator, model, labels, pad_token_id, max_tokens, unwrapped(model).packs, help_with)


def score_chunks(scorer: Scorer, split: Split, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Score a split in chunks of `CHUNK_ROWS` rows, in order.

    Parameters
    ----------
    scorer : Scorer
    split : Split
    start : int
        The first row, a multiple of `CHUNK_ROWS`.

    Yields
    ------
    first : int
        The first row of the chunk.
    logits : float32 [rows, labels]
        The same on every rank.
    """

    def logits(batch: Batch) -> torch.Tensor:
        found: torch.Tensor = scorer.model(batch.input_ids, batch.lengths, batch.windows)
        return found

    yield from read_chunks(scorer, split, Reading(len(scorer.labels.names), logits), start)


def read_chunks(scorer: Scorer, split: Split, reading: Reading, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Like `score_chunks`, for whatever ``reading`` takes from a forward pass: float32 [rows, width]."""
    was_training = scorer.model.training
    # Walks through all modules, which a server need not do for every pass.
    if was_training:
        scorer.model.eval()
    try:
        for first in range(start, len(split), CHUNK_ROWS):
            yield first, _read_chunk(scorer, split, reading, first)
    finally:
        if was_training:
            scorer.model.train()


@torch.no_grad()
def _read_chunk(scorer: Scorer, split: Split, reading: Reading, first: int) -> np.ndarray:
    """The numbers of the chunk that starts at row ``first``: float32 [rows, width].

    Raises
    ------
    RuntimeError
        If a row was not scored exactly once over all ranks.
    UserError
        If the numbers of a row are none; on all ranks.
    """
    accelerator = scorer.accelerator
    device, last = accelerator.device, min(len(split), first + CHUNK_ROWS)
    plan = plan_evaluation(split.lengths[first:last], accelerator.num_processes, scorer.max_tokens, scorer.packed)
    # The last column counts how often each row is scored.
    scores = torch.zeros(last - first, reading.width + 1, device=device)
    own = plan[accelerator.process_index]
    prepared = (collate(split, first + rows, scorer.pad_token_id, scorer.packed).pinned(device) for rows in own)
    with ahead(prepared, depth_for(device), device) as batches:
        for batch in batches:
            beat("scoring from row", first)
            numbers = reading.of_batch(batch.to(device))
            if len(batch.rows):
                indices = send(torch.from_numpy(batch.rows - first), device)
                scores[indices, :-1] = numbers.float()
                scores[indices, -1] += 1
    scores = sum_over_ranks(accelerator, scores).cpu()
    counts = scores[:, -1]
    if not bool((counts == 1).all()):
        raise RuntimeError(f"rows {first} to {last} were scored between {counts.min()} and {counts.max()} times")
    found: np.ndarray = scores[:, :-1].numpy()
    broken = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(broken):
        ids = [str(i) for i in split.table[(first + broken).tolist()]["id"]]
        raise UserError(
            f"{split.path}: the model gives no numbers for {len(broken)} of {last - first} rows ({named(ids)}); "
            f"{scorer.advice}, and train again"
        )
    return found


def score_split(scorer: Scorer, split: Split) -> np.ndarray:
    """Logits of a whole split, float32 [rows, labels], the same on every rank."""
    return np.concatenate([logits for _, logits in score_chunks(scorer, split)])


def evaluate_logits(
    logits: np.ndarray,
    split_labels: np.ndarray,
    labels: LabelSpace,
    thresholds: Thresholds,
    calibration: Calibration | None = None,
) -> Evaluation:
    """Probabilities, decisions and metrics of scored rows.

    Parameters
    ----------
    logits : float32 [rows, labels]
    split_labels : float32 [rows, labels] or int64 [rows]
        Label values as in a `Split`.
    labels : LabelSpace
    thresholds : Thresholds
    calibration : Calibration, optional

    Returns
    -------
    Evaluation
        ``metrics["loss"]`` is the mean cross-entropy over rows, without calibration, for every training loss.
    """
    probabilities = calibrated(logits, calibration or Calibration(), labels)
    predicted = apply_thresholds(probabilities, thresholds, labels)
    metrics = evaluate_predictions(probabilities, split_labels, predicted, labels.names, labels.binary)
    per_sample = build_loss(labels.problem_type)(torch.tensor(logits), torch.tensor(split_labels))
    return Evaluation(probabilities, predicted, {"loss": float(per_sample.double().mean()), **metrics})
