"""Scoring a split with thousands of labels: what is kept of a row leaves the device, and its other logits do not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from llmcls.data.batches import Batch
from llmcls.data.splits import Split
from llmcls.evaluation.metrics import to_probabilities
from llmcls.evaluation.scoring import Reading, Scorer, read_chunks
from llmcls.evaluation.top_scores import TopScores, kept_probabilities, together
from llmcls.model.losses import build_loss
from llmcls.recipe.metric_names import LARGEST_K


def read_top(scorer: Scorer, split: Split, kept: int, start: int = 0) -> Iterator[tuple[int, TopScores]]:
    """Score a split in chunks, in order; the same on every rank.

    Parameters
    ----------
    scorer : Scorer
    split : Split
    kept : int
        Labels per row that are kept, if there are so many.
    start : int
        The first row, a multiple of `llmcls.evaluation.outcome.CHUNK_ROWS`.

    Yields
    ------
    first : int
        The first row of the chunk.
    scores : TopScores
    """
    count = len(scorer.labels.names)
    kept, loss_of = min(kept, count), build_loss(scorer.labels.problem_type)

    def of_batch(batch: Batch) -> torch.Tensor:
        logits = scorer.model(batch.input_ids, batch.lengths, batch.windows).float()
        values, numbers = logits.topk(kept, dim=1)
        # Numbers of labels below 2^24 are exact in float32.
        parts = [values, numbers.float(), logits.sigmoid().sum(dim=1, keepdim=True)]
        losses = torch.zeros_like(parts[-1]) if batch.labels is None else loss_of(logits, batch.labels)[:, None]
        return torch.cat([*parts, losses], dim=1)

    for first, found in read_chunks(scorer, split, Reading(2 * kept + 2, of_batch), start):
        logits, numbers = found[:, :kept], found[:, kept : 2 * kept].astype(np.int32)
        sums, losses = found[:, 2 * kept].astype(np.float64), found[:, 2 * kept + 1].astype(np.float64)
        order = np.lexsort((numbers, -logits), axis=1)
        best = np.take_along_axis(numbers, order[:, :LARGEST_K], axis=1)
        probabilities = kept_probabilities(to_probabilities(logits, scorer.labels.problem_type), numbers, count)
        yield first, TopScores(probabilities, best, None if split.labels is None else losses, sums)


def score_top(scorer: Scorer, split: Split, kept: int) -> TopScores:
    """The most probable labels of a whole split; the same on every rank."""
    return together([scores for _, scores in read_top(scorer, split, kept)])
