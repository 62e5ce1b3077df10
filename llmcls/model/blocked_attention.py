"""Attention within each text of a packed row in 16 bits on a CPU.

torch's CPU kernel multiplies in float32 and computes scores that causality masks anyway. Here, blocks of queries meet
only the keys that they may see, and matrix products run in 16 bits, which recent CPUs do several times faster. Short
texts of similar lengths are one block, padded to the longest of them: starting an operation takes longer than computing
it for one of them. As on a GPU, scores are not kept for the backward pass but computed again (Dao et al. 2022,
"FlashAttention", section 3).
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Padding:
    """How tensors of [heads, tokens, width] become rows of texts of one length, and back.

    Attributes
    ----------
    queries : int64 [texts x query heads x longest]
        The row of [query heads x tokens, width] for each place. The places behind a text repeat its last token.
    keys : int64 [texts x key heads x longest]
        The same for key heads.
    query_places, key_places : int64 [heads x tokens of these texts]
        The place of each token.
    behind : int64 [any]
        The places of ``queries`` behind the texts.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    query_places: torch.Tensor
    key_places: torch.Tensor
    behind: torch.Tensor


@dataclass(frozen=True)
class Block:
    """Queries that are computed together, and the keys that they may see.

    Attributes
    ----------
    rows, seen : slice
        The tokens of the queries and of the keys.
    texts : int
    bias : 16-bit float, broadcast to [texts, heads, queries, keys], optional
        Added to the scores of the last keys: -inf where a query may not see a key.
    padding : Padding, optional
        Only for several texts.
    """

    rows: slice
    seen: slice
    texts: int
    bias: torch.Tensor | None
    padding: Padding | None


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
    settings = _Settings(pack.blocks[kind], scaling or query.shape[-1] ** -0.5, compiled)
    out: torch.Tensor = _BlockedAttention.apply(query[0], key[0], value[0], settings)  # type: ignore[no-untyped-call]
    return out[None]


def cut(pack: Pack, query_heads: int, key_heads: int, dtype: torch.dtype) -> list[Block]:
    """The blocks of a packed row."""
    lengths, blocks, start, first = pack.lengths, [], 0, 0
    bias: torch.Tensor | None
    while first < len(lengths):
        end = first + _alike(lengths, first)
        texts = lengths[first:end]
        stop = start + sum(texts)
        if len(texts) > 1:
            padding = _padding(texts, start, sum(lengths), query_heads, key_heads)
            bias = _future(max(texts), dtype) if pack.causal else _behind(texts, dtype)
            blocks.append(Block(slice(start, stop), slice(start, stop), len(texts), bias, padding))
        else:
            for row in range(start, stop, BLOCK):
                rows = slice(row, min(stop, row + BLOCK))
                # Only the last keys are those of the block itself; all others are in the past of every query.
                bias = _future(rows.stop - row, dtype) if pack.causal else None
                blocks.append(Block(rows, slice(start, rows.stop if pack.causal else stop), 1, bias, None))
        start, first = stop, end
    return blocks


def _alike(lengths: list[int], first: int) -> int:
    """How many texts from the first one on can be one block."""
    longest = shortest = lengths[first]
    for text in range(first, len(lengths)):
        longest, shortest, count = max(longest, lengths[text]), min(shortest, lengths[text]), text - first
        if longest > BLOCK or (count + 1) * longest**2 > SCORES or shortest < ALIKE * longest:
            return max(1, count)
    return len(lengths) - first


def _padding(lengths: list[int], start: int, tokens: int, query_heads: int, key_heads: int) -> Padding:
    longest, heads = max(lengths), {"queries": query_heads, "keys": key_heads}
    texts, position = np.array(lengths)[:, None], np.arange(longest)
    inside = position < texts
    first = start + np.cumsum([0, *lengths[:-1]])[:, None]
    token = first + np.minimum(position, texts - 1)
    place: dict[str, np.ndarray] = {}
    for name, count in heads.items():
        # [texts, heads, longest], as the matrix products of each text and head need it.
        place[name] = token[:, None] + tokens * np.arange(count)[:, None]
        places = np.arange(place[name].size).reshape(place[name].shape)
        # [heads, texts, longest] without what is behind the texts is [heads, tokens of these texts].
        place[f"{name} back"] = places.transpose(1, 0, 2)[:, inside]
    behind = np.flatnonzero(np.broadcast_to(~inside[:, None], place["queries"].shape))
    kinds = (place["queries"], place["keys"], place["queries back"], place["keys back"], behind)
    return Padding(*(torch.from_numpy(values.reshape(-1)) for values in kinds))


def _future(size: int, dtype: torch.dtype) -> torch.Tensor:
    """-inf for keys after the query, [queries, keys]."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu(1)


def _behind(lengths: list[int], dtype: torch.dtype) -> torch.Tensor:
    """-inf for keys behind the text, [texts, 1, 1, keys]."""
    behind = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return torch.zeros(behind.shape, dtype=dtype).masked_fill(behind, float("-inf"))[:, None, None]


@dataclass(frozen=True)
class _Settings:
    blocks: list[Block]
    scaling: float
    compiled: bool


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: _Settings
    ) -> torch.Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        heads, tokens, width = query.shape
        # As the layer after attention reads it.
        out, normalizers = query.new_empty(tokens, heads, width).transpose(0, 1), []
        for block in settings.blocks:
            scores = _scores(_queries(query, block, key), _keys(key, block), block, settings.scaling)
            weights, normalizer = softmax(scores, settings.compiled)
            _put_queries(out, block, torch.bmm(weights, _keys(value, block)))
            normalizers.append(normalizer)
        ctx.save_for_backward(query, key, value, *normalizers)
        ctx.settings = settings
        return out.transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        query, key, value, *normalizers = ctx.saved_tensors
        d_out, d_query, scaling = d_out.transpose(0, 1).contiguous(), torch.empty_like(query), ctx.settings.scaling
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        for block, normalizer in zip(ctx.settings.blocks, normalizers, strict=True):
            queries, keys, d_mixed = _queries(query, block, key), _keys(key, block), _queries(d_out, block, key)
            if block.padding is not None:
                d_mixed.view(-1, d_mixed.shape[-1]).index_fill_(0, block.padding.behind, 0.0)
            scores = _scores(queries, keys, block, scaling)
            d_weights = torch.bmm(d_mixed, _keys(value, block).transpose(1, 2))
            weights, d_scores = softmax_backward(scores, d_weights, normalizer)
            _put_queries(d_query, block, _scaled_product(d_scores, keys, scaling))
            _add_keys(d_key, block, d_scores.transpose(1, 2), queries, scaling)
            _add_keys(d_value, block, weights.transpose(1, 2), d_mixed)
        return d_query, d_key, d_value, None


def _queries(x: torch.Tensor, block: Block, key: torch.Tensor) -> torch.Tensor:
    """[query heads, tokens, width] to [texts x key heads, query heads per key head x rows, width]: they share keys."""
    if block.padding is None:
        return x[:, block.rows].reshape(len(key), -1, x.shape[-1])
    rows = x.view(-1, x.shape[-1]).index_select(0, block.padding.queries)
    return rows.view(block.texts * len(key), -1, x.shape[-1])


def _keys(x: torch.Tensor, block: Block) -> torch.Tensor:
    """[key heads, tokens, width] to [texts x key heads, keys, width]."""
    if block.padding is None:
        return x[:, block.seen]
    return x.view(-1, x.shape[-1]).index_select(0, block.padding.keys).view(block.texts * len(x), -1, x.shape[-1])


def _put_queries(target: torch.Tensor, block: Block, rows: torch.Tensor) -> None:
    """The inverse of `_queries`, into a tensor."""
    rows = rows.view(-1, rows.shape[-1])
    if block.padding is not None:
        rows = rows.index_select(0, block.padding.query_places)
    target[:, block.rows] = rows.view(len(target), -1, rows.shape[-1])


def _add_keys(target: torch.Tensor, block: Block, left: torch.Tensor, right: torch.Tensor, factor: float = 1.0) -> None:
    """Add ``factor`` times a matrix product to the keys of a block in a tensor [key heads, tokens, width]."""
    if block.padding is None:
        target[:, block.seen].baddbmm_(left, right, alpha=factor)
        return
    rows = _scaled_product(left, right, factor).view(-1, right.shape[-1]).index_select(0, block.padding.key_places)
    target[:, block.seen] = rows.view(len(target), -1, rows.shape[-1])


def _scaled_product(left: torch.Tensor, right: torch.Tensor, factor: float) -> torch.Tensor:
    """``factor`` times a matrix product of each of a batch, in one operation."""
    # With beta = 0, the first argument is not read.
    unread = left.new_empty(()).expand(len(left), left.shape[1], right.shape[2])
    return torch.baddbmm(unread, left, right, beta=0, alpha=factor)


def _scores(queries: torch.Tensor, keys: torch.Tensor, block: Block, scaling: float) -> torch.Tensor:
    """Scores, [texts x key heads, query heads per key head x rows, keys], -inf for keys that are not seen."""
    scores = _scaled_product(queries, keys.transpose(1, 2), scaling)
    if block.bias is not None:
        rows = block.rows.stop - block.rows.start if block.padding is None else keys.shape[1]
        # [texts, heads, rows, keys]
        scores.view(block.texts, -1, rows, scores.shape[-1])[..., -block.bias.shape[-1] :] += block.bias
    return scores
