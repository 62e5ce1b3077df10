"""Batches: which rows an optimizer step contains, and how a step is split into micro-batches.

An optimizer step contains ``batch_size x gradient_accumulation_steps x ranks`` rows, drawn at random with the seed. The
last step of an epoch contains the remaining rows. Rows are only reordered within a step: they are cut into as few
micro-batches as the budget of tokens allows, of nearly equal cost, and these are distributed to the ranks. So the
statistics of training are those of plain shuffling. Packed micro-batches have no padding, and padded ones contain rows
of similar lengths.

Every rank computes the whole plan from the shared seed, without communication. All ranks get the same number of
micro-batches in a step; a rank with fewer rows gets empty ones. If a rank skipped a forward pass, the other ranks would
wait in a collective operation under FSDP or ZeRO.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from llmcls.data.marks import dense_rows
from llmcls.data.micro_batches import balanced_bins, even_runs
from llmcls.data.splits import Split

# Steps whose rows are sorted by length together if `BatchSpec.grouped`, as in group_by_length of the `Trainer` of
# `transformers`.
POOL = 50


@dataclass(frozen=True)
class BatchSpec:
    """How rows are divided into steps and micro-batches.

    Attributes
    ----------
    global_batch_size : int
        Rows of an optimizer step over all ranks. See `global_batch_size`.
    ranks : int
        Number of processes.
    max_tokens : int
        Maximum size of a micro-batch: the sum of the lengths if packed, else rows x longest row. A longer row gets a
        micro-batch with no other rows.
    packed : bool
        Whether the texts of a micro-batch are concatenated, without padding.
    grouped : bool
        Whether steps consist of rows of similar lengths, taken from pools of `POOL` steps.
    """

    global_batch_size: int
    ranks: int
    max_tokens: int
    packed: bool = False
    grouped: bool = False


@dataclass(frozen=True)
class Step:
    """An optimizer step.

    Attributes
    ----------
    rows : int
        Number of rows over all ranks.
    tokens : int
        Number of tokens over all ranks.
    micro_batches : list of list of int64 [rows]
        ``micro_batches[rank][k]`` contains row indices and can be empty. All ranks have the same number of
        micro-batches.
    """

    rows: int
    tokens: int
    micro_batches: list[list[np.ndarray]]


@dataclass
class Batch:
    """A micro-batch.

    Attributes
    ----------
    input_ids : int64 [texts, longest] or [tokens]
        Right-padded, or packed.
    lengths : list of int
        Tokens of each text.
    labels : float32 [rows, labels] or int64 [rows], optional
        As in a `Split`: its probabilities if it has some. Always dense.
    rows : int64 [rows]
        Row indices in the split.
    windows : list of int, optional
        Number of texts of each row, if long rows are read in windows. None if every row is one text.
    """

    input_ids: torch.Tensor
    lengths: list[int]
    labels: torch.Tensor | None
    rows: np.ndarray
    windows: list[int] | None = None

    def pinned(self, device: torch.device) -> Batch:
        """The batch in memory from which copies to ``device`` are asynchronous: pinned for a GPU, else as it is."""
        if device.type != "cuda":
            return self
        labels = None if self.labels is None else self.labels.pin_memory()
        return replace(self, input_ids=self.input_ids.pin_memory(), labels=labels)

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device. Copies to a GPU use pinned memory and are asynchronous."""
        labels = None if self.labels is None else send(self.labels, device)
        return replace(self, input_ids=send(self.input_ids, device), labels=labels)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device; to a GPU from pinned memory, so that the host does not wait for the copy."""
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def plan_epoch(
    lengths: np.ndarray, spec: BatchSpec, seed: int, epoch: int, first_step: int = 0, weights: np.ndarray | None = None
) -> Iterator[Step]:
    """Yield the steps of an epoch, the same ones on every rank.

    Parameters
    ----------
    lengths : int [rows]
        Tokens per row.
    spec : BatchSpec
    seed, epoch : int
        Together with the other arguments, they determine the order, so a resumed run gets the same steps.
    first_step : int
        The number of steps to skip.
    weights : float [rows], optional
        Relative probabilities of the rows, which are drawn with replacement, as many as the split has. By default,
        each row is drawn once.

    Yields
    ------
    Step
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
    """Sort rows by length within pools of `POOL` steps, then shuffle the steps. An incomplete step stays last."""
    size = POOL * spec.global_batch_size
    pools = [order[start : start + size] for start in range(0, len(order), size)]
    steps = [
        pool[start : start + spec.global_batch_size]
        for pool in (p[np.argsort(-lengths[p], kind="stable")] for p in pools)
        for start in range(0, len(pool), spec.global_batch_size)
    ]
    complete = [s for s in steps if len(s) == spec.global_batch_size]
    rng.shuffle(complete)
    return np.concatenate(complete + [s for s in steps if len(s) < spec.global_batch_size])


def balanced_weights(marks: np.ndarray) -> np.ndarray:
    """How often rows are drawn with ``sampling: balanced``, relative to a row of the most frequent label.

    Parameters
    ----------
    marks : bool [rows, labels]
        The true labels.

    Returns
    -------
    float64 [rows], at least 1

    Notes
    -----
    The weight is sqrt(frequency of the most frequent label / frequency of the row's rarest label), and 1 for a row
    without labels. This is repeat factor sampling (Gupta et al. 2019, "LVIS", section 5.1) with the frequency of the
    most frequent label as the threshold.

    Examples
    --------
    >>> balanced_weights(np.array([[True, False], [True, False], [True, False], [True, True], [False, False]]))
    array([1., 1., 1., 2., 1.])
    """
    counts = np.maximum(marks.sum(0), 1)
    return np.maximum(1.0, (marks * np.sqrt(counts.max() / counts)).max(axis=1))


def plan_step(rows: np.ndarray, lengths: np.ndarray, spec: BatchSpec) -> Step:
    """Cut the rows of a step into the fewest micro-batches, the same number on every rank, of nearly equal cost.

    Parameters
    ----------
    rows : int64 [rows]
        Row indices of the step.
    lengths : int [rows of the split]
        Tokens per row.
    spec : BatchSpec

    Returns
    -------
    Step

    Examples
    --------
    >>> lengths = np.array([5, 3, 2, 4])
    >>> step = plan_step(np.arange(4), lengths, BatchSpec(global_batch_size=4, ranks=2, max_tokens=6, packed=True))
    >>> [[rows.tolist() for rows in micro_batches] for micro_batches in step.micro_batches]
    [[[0], [2]], [[3], [1]]]
    """
    longest_first = rows[np.argsort(-lengths[rows], kind="stable")]
    sizes = lengths[longest_first]
    if spec.packed:
        bins = [np.array(b, dtype=np.int64) for b in balanced_bins(sizes.tolist(), spec.ranks, spec.max_tokens)]
        micro_batches = [longest_first[positions] for positions in bins]
        costs = [int(lengths[m].sum()) for m in micro_batches]
    else:
        micro_batches = [longest_first[run] for run in even_runs(sizes, spec.ranks, spec.max_tokens, packed=False)]
        costs = [len(m) * int(lengths[m[0]]) for m in micro_batches]
    return Step(len(rows), int(lengths[rows].sum()), _distribute(micro_batches, costs, spec.ranks))


def plan_evaluation(lengths: np.ndarray, ranks: int, max_tokens: int, packed: bool) -> list[list[np.ndarray]]:
    """Micro-batches that contain every row once.

    Rows are sorted by length and cut into micro-batches of nearly equal cost before these are distributed to the ranks.
    So the batch of a row, and with it every bit of its logits, does not depend on the number of ranks.

    Parameters
    ----------
    lengths : int [rows]
        Tokens per row.
    ranks : int
        Number of processes.
    max_tokens, packed
        See `BatchSpec`.

    Returns
    -------
    list of list of int64 [rows]
        ``plan[rank][k]`` contains row indices. All ranks have the same number of micro-batches; the last ones can be
        empty.

    Examples
    --------
    >>> plan = plan_evaluation(np.array([5, 3, 2, 4]), ranks=2, max_tokens=6, packed=True)
    >>> [[rows.tolist() for rows in micro_batches] for micro_batches in plan]
    [[[0], [1, 2]], [[3], []]]
    """
    order = np.argsort(-lengths, kind="stable")
    batches = [order[run] for run in even_runs(lengths[order], 1, max_tokens, packed)]
    empty = np.empty(0, dtype=np.int64)
    batches += [empty] * (-len(batches) % ranks)
    return [batches[rank::ranks] for rank in range(ranks)]


def _distribute(micro_batches: list[np.ndarray], costs: list[int], ranks: int) -> list[list[np.ndarray]]:
    """Give every rank the same number of micro-batches and nearly the same cost; missing ones are empty.

    The most expensive micro-batches are assigned first, each to the rank with the smallest cost that can take another
    one (Graham 1969, with equal counts).
    """
    passes = -(-len(micro_batches) // ranks)
    load = [0] * ranks
    shares: list[list[np.ndarray]] = [[] for _ in range(ranks)]
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        rank = min((r for r in range(ranks) if len(shares[r]) < passes), key=lambda r: (load[r], r))
        shares[rank].append(micro_batches[i])
        load[rank] += costs[i]
    empty = np.empty(0, dtype=np.int64)
    return [share + [empty] * (passes - len(share)) for share in shares]


def collate(split: Split, rows: np.ndarray, pad_token_id: int, packed: bool = False) -> Batch:
    """Pad or pack rows of a split into a batch.

    Parameters
    ----------
    split : Split
    rows : int64 [rows]
        Row indices. Without rows, the batch has one text of one padding token, for a forward pass without effect.
    pad_token_id : int
    packed : bool

    Returns
    -------
    Batch
    """
    texts = [split.tokens[row] for row in rows] or [np.array([pad_token_id], dtype=np.int32)]
    windows = None
    if split.window is not None:
        parts_of = [np.split(text, range(split.window, len(text), split.window)) for text in texts]
        windows, texts = [len(parts) for parts in parts_of], [part for parts in parts_of for part in parts]
    lengths = [len(t) for t in texts]
    if packed:
        input_ids = np.concatenate(texts).astype(np.int64)
    else:
        input_ids = np.full((len(texts), max(lengths)), pad_token_id, dtype=np.int64)
        for i, text in enumerate(texts):
            input_ids[i, : len(text)] = text
    labels = None
    values = split.labels if split.soft is None else split.soft
    if values is not None:
        # An empty batch takes the labels of row 0; its loss has weight zero.
        labels = torch.from_numpy(dense_rows(values, rows if len(rows) else np.zeros(1, dtype=np.int64)))
    return Batch(torch.from_numpy(input_ids), lengths, labels, rows, windows)
