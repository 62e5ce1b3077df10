"""Attention within each text of a packed row in 16 bits on a CPU.

torch's CPU kernel multiplies in float32 and computes scores that causality masks anyway. Here, blocks of queries meet
only the keys that they may see, and matrix products run in 16 bits, which recent CPUs do several times faster. Short
texts of similar lengths are one block, padded to the longest of them: starting an operation takes longer than computing
it for one of them. Queries, keys and values are put into the order of the blocks first, so that a product finds each of
its matrices in one piece.

The weights of queries that see few keys are kept for the backward pass. Those of others are computed again, as on a GPU
(Dao et al. 2022, "FlashAttention", section 3): they grow with the square of a text's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmcls.model.fused_ops import softmax, softmax_backward
from llmcls.model.packed_attention import Pack

# Queries of a block of a long text.
BLOCK = 128
# Scores per head of a block of several texts: as many as a block of a text of 512 tokens has at most.
SCORES = 1 << 16
# The part of the longest text of a block that its shortest one must have.
ALIKE = 0.7
# Keys up to which the weights of a query are kept for the backward pass. Without that, the backward pass of attention
# takes half as long again. By the trace, a step of SmolLM2-135M takes 12 % more memory with texts of 200 tokens, 24 %
# with texts of 512, and less again with longer ones.
KEPT = 512


@dataclass(frozen=True)
class Block:
    """Queries that are computed together, and the keys that they may see.

    Attributes
    ----------
    texts : int
        Several, or one that may have more blocks.
    queries : slice
        Their places in the order of blocks: texts, key heads, query heads of a key head, tokens.
    keys : slice
        The places of all keys of these texts: texts, key heads, tokens.
    rows : int
        Queries per text and head.
    seen : int
        No query sees other keys than the first so many of its text.
    last : bool
        Whether it is the last block of its texts, which sees all their keys.
    bias : 16-bit float, broadcast to [texts, heads, queries, keys], optional
        Added to the scores of the last keys: -inf where a query may not see a key.
    """

    texts: int
    queries: slice
    keys: slice
    rows: int
    seen: int
    last: bool
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Blocks:
    """A packed row as blocks.

    Attributes
    ----------
    blocks : list of Block
    query_rows : int64 [queries of all blocks]
        The row of [tokens x query heads, width] at each place. The places behind a text repeat its last token.
    key_rows : int64 [keys of all texts]
        The same for [tokens x key heads, width].
    query_places, key_places : int64 [tokens x heads]
        The place of each row.
    behind : int64 [any]
        The places of queries behind the texts.
    """

    blocks: list[Block]
    query_rows: torch.Tensor
    key_rows: torch.Tensor
    query_places: torch.Tensor
    key_places: torch.Tensor
    behind: torch.Tensor


def blocked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scaling: float | None, compiled: bool
) -> torch.Tensor:
    """Scaled dot-product attention within each text, without dropout.

    Parameters
    ----------
    query : 16-bit float [1, query heads, tokens, width]
    key, value : 16-bit float [1, key heads, tokens, width]
    pack : Pack
    scaling : float, optional
        Factor on the scores; None means 1 / sqrt(width).
    compiled : bool
        Whether to compile the formulas of softmax.

    Returns
    -------
    16-bit float [1, tokens, query heads, width]
    """
    kind = (query.shape[1], key.shape[1], query.dtype)
    if kind not in pack.blocks:
        pack.blocks[kind] = cut(pack, *kind)
    settings = _Settings(pack.blocks[kind], key.shape[1], scaling or query.shape[-1] ** -0.5, compiled)
    out: torch.Tensor = _BlockedAttention.apply(query[0], key[0], value[0], settings)  # type: ignore[no-untyped-call]
    return out[None]


def cut(pack: Pack, query_heads: int, key_heads: int, dtype: torch.dtype) -> Blocks:
    """The blocks of a packed row."""
    lengths, blocks, start, first = pack.lengths, [], 0, 0
    query_rows: list[np.ndarray] = []
    key_rows: list[np.ndarray] = []
    behind: list[np.ndarray] = []
    # Query heads that share a key head follow each other.
    query_head, key_head = np.arange(query_heads).reshape(key_heads, -1, 1), np.arange(key_heads)[:, None]
    queries = keys = 0
    while first < len(lengths):
        end = first + _alike(lengths, first)
        texts = np.array(lengths[first:end])[:, None]
        longest, all_keys = int(texts.max()), slice(keys, keys + len(texts) * key_heads * int(texts.max()))
        # [texts, longest]
        token = start + np.cumsum(texts)[:, None] - texts + np.minimum(np.arange(longest), texts - 1)
        key_rows.append(token[:, None] * key_heads + key_head)
        for row, stop in _rows(longest, len(texts)):
            query_rows.append(token[:, None, None, row:stop] * query_heads + query_head)
            at_once = slice(queries, queries + query_rows[-1].size)
            seen = stop if pack.causal else longest
            bias = _bias(texts, stop - row, pack.causal, dtype)
            blocks.append(Block(len(texts), at_once, all_keys, stop - row, seen, stop == longest, bias))
            outside = np.broadcast_to((np.arange(row, stop) >= texts)[:, None, None], query_rows[-1].shape)
            behind.append(queries + np.flatnonzero(outside))
            queries = at_once.stop
        keys, start, first = all_keys.stop, start + int(texts.sum()), end
    by_block, by_text = (np.concatenate([rows.reshape(-1) for rows in found]) for found in (query_rows, key_rows))
    tensors = (by_block, by_text, _first_places(by_block), _first_places(by_text), np.concatenate(behind))
    return Blocks(blocks, *(torch.from_numpy(values) for values in tensors))


def _alike(lengths: list[int], first: int) -> int:
    """How many texts from the first one on can be one block."""
    longest = shortest = lengths[first]
    for text in range(first, len(lengths)):
        longest, shortest, count = max(longest, lengths[text]), min(shortest, lengths[text]), text - first
        if longest > BLOCK or (count + 1) * longest**2 > SCORES or shortest < ALIKE * longest:
            return max(1, count)
    return len(lengths) - first


def _rows(longest: int, texts: int) -> Iterator[tuple[int, int]]:
    """First and last queries of the blocks of texts that are computed together."""
    size = longest if texts > 1 else BLOCK
    for row in range(0, longest, size):
        yield row, min(longest, row + size)


def _bias(texts: np.ndarray, rows: int, causal: bool, dtype: torch.dtype) -> torch.Tensor | None:
    """See `Block`, for texts of these lengths [texts, 1]."""
    if causal:
        # Only the last keys are those of the block itself; all others are in the past of every query. What is behind a
        # text is in the future of all of it.
        return torch.full((rows, rows), float("-inf"), dtype=dtype).triu(1)
    if len(texts) == 1:
        return None
    behind = torch.from_numpy(np.arange(texts.max()) >= texts)
    return torch.zeros(behind.shape, dtype=dtype).masked_fill(behind, float("-inf"))[:, None, None]


def _first_places(rows: np.ndarray) -> np.ndarray:
    """The first place of each row: what repeats it is behind a text."""
    places = np.empty(rows.max() + 1, dtype=np.int64)
    # Of what is assigned to the same element, the last one stays.
    places[rows[::-1]] = np.arange(len(rows))[::-1]
    return places


@dataclass(frozen=True)
class _Settings:
    packed: Blocks
    key_heads: int
    scaling: float
    compiled: bool


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: _Settings
    ) -> torch.Tensor:
        packed, trained = settings.packed, any(ctx.needs_input_grad)
        queries, keys, values = (
            _in_order(x.transpose(0, 1), rows)
            for x, rows in ((query, packed.query_rows), (key, packed.key_rows), (value, packed.key_rows))
        )
        mixed, kept = torch.empty_like(queries), []
        for block in packed.blocks:
            queries_here, mixed_here = _of_queries(block, settings, queries, mixed)
            keys_here, values_here = _of_keys(block, settings, keys, values)
            weights = softmax(_scores(block, settings, queries_here, keys_here), settings.compiled)
            torch.bmm(weights, values_here, out=mixed_here)
            kept.append(weights if trained and block.seen <= KEPT else None)
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.settings = settings
        # As the layer after attention reads it.
        return _in_order(mixed, packed.query_places).view(query.shape[1], len(query), -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        queries, keys, values, *kept = ctx.saved_tensors
        settings, packed = ctx.settings, ctx.settings.packed
        d_mixed = _in_order(d_out, packed.query_rows).index_fill_(0, packed.behind, 0.0)
        d_queries, d_keys, d_values = (torch.empty_like(x) for x in (queries, keys, values))
        # The last block of a text reaches all its keys, so it comes first, and the others add to it.
        for block, weights in zip(reversed(packed.blocks), reversed(kept), strict=True):
            queries_here, d_queries_here, d_mixed_here = _of_queries(block, settings, queries, d_queries, d_mixed)
            keys_here, values_here, d_keys_here, d_values_here = _of_keys(
                block, settings, keys, values, d_keys, d_values
            )
            if weights is None:
                weights = softmax(_scores(block, settings, queries_here, keys_here), settings.compiled)
            d_weights = torch.bmm(d_mixed_here, values_here.transpose(1, 2))
            d_scores = softmax_backward(weights, d_weights, settings.compiled)
            d_queries_here.baddbmm_(d_scores, keys_here, beta=0, alpha=settings.scaling)
            before = 0 if block.last else 1
            d_keys_here.baddbmm_(d_scores.transpose(1, 2), queries_here, beta=before, alpha=settings.scaling)
            d_values_here.baddbmm_(weights.transpose(1, 2), d_mixed_here, beta=before)
        places = (packed.query_places, packed.key_places, packed.key_places)
        heads = (d_out.shape[1], settings.key_heads, settings.key_heads)
        gradients = zip((d_queries, d_keys, d_values), places, heads, strict=True)
        return *(_in_order(d, place).view(len(d_out), count, -1).transpose(0, 1) for d, place, count in gradients), None


def _in_order(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of [any, width]; x may have more dimensions."""
    return x.reshape(-1, x.shape[-1]).index_select(0, rows)


def _of_queries(block: Block, settings: _Settings, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
    """A block's part of tensors by query, [texts x key heads, query heads of a key head x rows, width]."""
    return [x[block.queries].view(block.texts * settings.key_heads, -1, x.shape[-1]) for x in tensors]


def _of_keys(block: Block, settings: _Settings, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
    """What a block sees of tensors by key, [texts x key heads, keys, width]."""
    return [x[block.keys].view(block.texts * settings.key_heads, -1, x.shape[-1])[:, : block.seen] for x in tensors]


def _scores(block: Block, settings: _Settings, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Scores, [texts x key heads, query heads of a key head x rows, keys], -inf for keys that are not seen."""
    # With beta = 0, the first argument is not read.
    unread = queries.new_empty(()).expand(len(queries), queries.shape[1], keys.shape[1])
    scores = torch.baddbmm(unread, queries, keys.transpose(1, 2), beta=0, alpha=settings.scaling)
    if block.bias is not None:
        # [texts, heads, rows, keys]
        scores.view(block.texts, -1, block.rows, block.seen)[..., -block.bias.shape[-1] :] += block.bias
    return scores
