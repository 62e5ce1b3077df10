"""The states that the head of a classifier reads, one per row, collected from whatever engine holds the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from llmcls.data.batches import Batch
from llmcls.data.splits import Split
from llmcls.evaluation.scoring import Reading, Scorer, read_chunks
from llmcls.model.head import states_read_by


def state_chunks(
    scorer: Scorer, split: Split, linear: nn.Linear, start: int = 0, with_logits: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """The states of a split in chunks of rows, in order. Collective.

    Parameters
    ----------
    scorer : Scorer
    split : Split
    linear : nn.Linear
        The head of the scorer's model, from `llmcls.model.head.head_linear`.
    start : int
        The first row, a multiple of `CHUNK_ROWS`.
    with_logits : bool
        Put the logits of the same pass behind the states.

    Yields
    ------
    first : int
        The first row of the chunk.
    numbers : float32 [rows, hidden] or [rows, hidden + labels]
        The same on every rank. The state of a text in windows is the mean of theirs.
    """
    with states_read_by(linear) as read:

        def numbers(batch: Batch) -> torch.Tensor:
            logits = scorer.model(batch.input_ids, batch.lengths, batch.windows)
            states = read[0].float()
            if batch.windows is not None:
                states = torch.stack([windows.mean(0) for windows in states.split(batch.windows)])
            return torch.cat([states, logits.float()], dim=1) if with_logits else states

        width = linear.in_features + with_logits * len(scorer.labels.names)
        yield from read_chunks(scorer, split, Reading(width, numbers), start)


def collect_states(scorer: Scorer, split: Split, linear: nn.Linear) -> np.ndarray | None:
    """The states of a whole split, float32 [rows, hidden], on the main process; None on the others. Collective."""
    kept: np.ndarray | None = None
    if scorer.accelerator.is_main_process:
        kept = np.empty((len(split), linear.in_features), dtype=np.float32)
    for first, states in state_chunks(scorer, split, linear):
        if kept is not None:
            kept[first : first + len(states)] = states
    return kept
