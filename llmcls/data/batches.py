"""Batching: which rows make up an optimizer step, and how a step is cut into micro-batches.

An optimizer step is always exactly ``batch_size x gradient_accumulation_steps x ranks`` rows drawn at
random with the seed, as a plain script would draw them (the last step of an epoch holds what is left).
Only inside a step are rows moved: sorted by length, dealt out so that ranks carry equal tokens, and cut
into micro-batches of like lengths under a budget of tokens. The statistics of training are therefore those of
plain shuffling, and the padding is gone: all of it where the model takes packed rows, most of it elsewhere.

Every rank computes the whole plan from the shared seed, so nothing is communicated, and every rank gets
the same number of micro-batches in a step (empty ones where it has fewer rows): a rank that skipped a
forward pass would leave the others waiting in a collective under FSDP or ZeRO.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from llmcls.data.splits import Split
from llmcls.recipe.schema import Recipe

# Steps whose rows are sorted by length together where `grouped`; as `Trainer`'s group_by_length.
POOL = 50


@dataclass(frozen=True)
class BatchSpec:
    """How rows become steps.

    global_batch_size: rows in one optimizer step, over all ranks: batch size x accumulation x ranks where a run began.
    ranks: processes.
    max_tokens: what a micro-batch may hold: real tokens when packed, rows x longest when padded. A row that is
        longer is alone.
    packed: texts in one row, without padding.
    grouped: steps are made of rows of like lengths, out of pools of `POOL` steps.
    """

    global_batch_size: int
    ranks: int
    max_tokens: int
    packed: bool = False
    grouped: bool = False


@dataclass(frozen=True)
class Step:
    """One optimizer step: ``micro_batches[rank][k]`` are row numbers, int64 [rows], maybe empty."""

    rows: int
    tokens: int
    micro_batches: list[list[np.ndarray]]


@dataclass
class Batch:
    """A micro-batch.

    input_ids: int64 [texts, longest], right-padded, or [tokens], packed. lengths: tokens of each text.
    rows: row numbers in the split. labels: float32 [rows, labels], int64 [rows], or None.
    windows: how many texts each row is, where long rows are read in windows; None where a row is one text.
    """

    input_ids: torch.Tensor
    lengths: list[int]
    labels: torch.Tensor | None
    rows: np.ndarray
    windows: list[int] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``; to a GPU through pinned memory, so that nothing waits for the copy."""
        if device.type == "cpu":
            return self

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        labels = None if self.labels is None else move(self.labels)
        return replace(self, input_ids=move(self.input_ids), labels=labels)


def global_batch_size(recipe: Recipe, ranks: int) -> int:
    """Rows of one optimizer step of a run that starts on ``ranks`` processes; the run keeps it when it moves."""
    return recipe.train.batch_size * recipe.train.gradient_accumulation_steps * ranks


def steps_per_epoch(rows: int, global_batch_size: int) -> int:
    """Optimizer steps in one pass over ``rows`` rows."""
    return -(-rows // global_batch_size)


def plan_epoch(
    lengths: np.ndarray, spec: BatchSpec, seed: int, epoch: int, first_step: int = 0, weights: np.ndarray | None = None
) -> Iterator[Step]:
    """The steps of one epoch from ``first_step`` on, the same on every rank.

    Parameters
    ----------
    lengths: int [rows], tokens per row.
    seed, epoch: the order is a function of these two alone, so a resumed run sees the same steps.
    weights: float [rows]; draws as many rows with replacement, these being their chances. None takes each row once.
    """
    rng = np.random.default_rng([seed, epoch])
    if weights is None:
        order = rng.permutation(len(lengths))
    else:
        order = rng.choice(len(lengths), len(lengths), p=weights / weights.sum())
    if spec.grouped:
        order = _group(order, lengths, spec, rng)
    for start in range(first_step * spec.global_batch_size, len(order), spec.global_batch_size):
        yield plan_step(order[start : start + spec.global_batch_size], lengths, spec)


def _group(order: np.ndarray, lengths: np.ndarray, spec: BatchSpec, rng: np.random.Generator) -> np.ndarray:
    """Rows sorted by length within pools of steps, the whole steps then in random order, a last short one last."""
    size = POOL * spec.global_batch_size
    pools = [order[start : start + size] for start in range(0, len(order), size)]
    steps = [
        pool[start : start + spec.global_batch_size]
        for pool in (p[np.argsort(-lengths[p], kind="stable")] for p in pools)
        for start in range(0, len(pool), spec.global_batch_size)
    ]
    whole = [s for s in steps if len(s) == spec.global_batch_size]
    rng.shuffle(whole)
    return np.concatenate(whole + [s for s in steps if len(s) < spec.global_batch_size])


def balanced_weights(marks: np.ndarray) -> np.ndarray:
    """float64 [rows]: how much more often a row is drawn for its rarest label.

    sqrt(frequency of the most frequent label / frequency of the row's rarest one), 1 for a row without labels: repeat
    factor sampling (Gupta et al. 2019, "LVIS", section 5.1) with the most frequent label as its threshold.

    Parameters
    ----------
    marks: bool [rows, labels]
    """
    counts = np.maximum(marks.sum(0), 1)
    return np.maximum(1.0, (marks * np.sqrt(counts.max() / counts)).max(axis=1))


def plan_step(rows: np.ndarray, lengths: np.ndarray, spec: BatchSpec) -> Step:
    """Deal the rows of one step to the ranks and cut each rank's share into micro-batches."""
    shares = _deal(rows, lengths, spec)
    cut = [_cut(share, lengths, spec) for share in shares]
    passes = max(len(micro) for micro in cut)
    nothing = np.empty(0, dtype=np.int64)
    padded = [micro + [nothing] * (passes - len(micro)) for micro in cut]
    return Step(len(rows), int(lengths[rows].sum()), padded)


def plan_evaluation(lengths: np.ndarray, ranks: int, max_tokens: int, packed: bool) -> list[list[np.ndarray]]:
    """Micro-batches of every row once: ``plan[rank][k]``, the same number for every rank.

    Rows are sorted by length and cut before they are dealt out, so that a row's batch, and with it its
    logits to the last bit, does not depend on the number of ranks.
    """
    order = np.argsort(-lengths, kind="stable")
    spec = BatchSpec(len(order), 1, max_tokens, packed)
    batches = _cut(order, lengths, spec)
    nothing = np.empty(0, dtype=np.int64)
    batches += [nothing] * (-len(batches) % ranks)
    return [batches[rank::ranks] for rank in range(ranks)]


def _deal(rows: np.ndarray, lengths: np.ndarray, spec: BatchSpec) -> list[np.ndarray]:
    """Longest first, each row to the rank with the fewest tokens that still has room for a row.

    The greedy rule of Graham (1969), "Bounds on multiprocessing timing anomalies", with equal counts:
    ranks differ by at most one row, and in tokens by less than the longest row.
    """
    longest_first = rows[np.argsort(-lengths[rows], kind="stable")]
    if spec.ranks == 1:
        return [longest_first]
    room = [len(rows) // spec.ranks + (r < len(rows) % spec.ranks) for r in range(spec.ranks)]
    load = [0] * spec.ranks
    shares: list[list[int]] = [[] for _ in range(spec.ranks)]
    for row in longest_first:
        rank = min((r for r in range(spec.ranks) if room[r]), key=lambda r: (load[r], r))
        shares[rank].append(row)
        load[rank] += int(lengths[row])
        room[rank] -= 1
    return [np.array(share, dtype=np.int64) for share in shares]


def _cut(rows: np.ndarray, lengths: np.ndarray, spec: BatchSpec) -> list[np.ndarray]:
    """Cut rows, sorted longest first, into micro-batches of like lengths."""
    cut, start = [], 0
    while start < len(rows):
        if spec.packed:
            # No more than ``max_tokens`` rows can fit, so no more need be summed.
            filled = np.cumsum(lengths[rows[start : start + spec.max_tokens]])
            count = max(1, int(np.searchsorted(filled, spec.max_tokens, side="right")))
        else:
            # The first row is the longest, so it alone decides how many rows the budget holds.
            count = max(1, spec.max_tokens // int(lengths[rows[start]]))
        cut.append(rows[start : start + count])
        start += count
    return cut


def collate(split: Split, rows: np.ndarray, pad_token_id: int, packed: bool = False) -> Batch:
    """Pad or pack the rows into one batch; no rows make a batch of one token, for a pass that counts nothing."""
    texts = [split.tokens[row] for row in rows] or [np.array([pad_token_id], dtype=np.int32)]
    windows = None
    if split.window is not None:
        cut = [np.split(text, range(split.window, len(text), split.window)) for text in texts]
        windows, texts = [len(parts) for parts in cut], [part for parts in cut for part in parts]
    lengths = [len(t) for t in texts]
    if packed:
        input_ids = np.concatenate(texts).astype(np.int64)
    else:
        input_ids = np.full((len(texts), max(lengths)), pad_token_id, dtype=np.int64)
        for i, text in enumerate(texts):
            input_ids[i, : len(text)] = text
    labels = None
    if split.labels is not None:
        # Row 0 stands in for the labels of an empty batch; its loss has weight zero.
        labels = torch.from_numpy(split.labels[rows if len(rows) else np.zeros(1, dtype=np.int64)])
    return Batch(torch.from_numpy(input_ids), lengths, labels, rows, windows)
