"""Attention within each text of a packed row in 16 bits on a CPU.

torch's CPU kernel multiplies in float32 and computes scores that causality masks anyway. Here, blocks of queries meet
only the keys that they may see, and matrix products run in 16 bits, which recent CPUs do several times faster. As on a
GPU, scores are not kept for the backward pass but computed again (Dao et al. 2022, "FlashAttention", section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from llmcls.model.fused_ops import softmax, softmax_backward

# Queries of a block: the scores of a block fit into the cache of a core.
BLOCK = 128


def blocked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], causal: bool,
    scaling: float | None, compiled: bool,
) -> torch.Tensor:  # fmt: skip
    """Scaled dot-product attention within each text, without dropout.

    Parameters
    ----------
    query : 16-bit float [1, query heads, tokens, width]
    key, value : 16-bit float [1, key heads, tokens, width]
    lengths : list of int
        Tokens of each text.
    causal : bool
    scaling : float, optional
        Factor on the scores; None means 1 / sqrt(width).
    compiled : bool
        Whether to compile the formulas of softmax.

    Returns
    -------
    16-bit float [1, tokens, query heads, width]
    """
    settings = _Settings(tuple(lengths), causal, scaling or query.shape[-1] ** -0.5, compiled)
    out: torch.Tensor = _BlockedAttention.apply(query[0], key[0], value[0], settings)  # type: ignore[no-untyped-call]
    return out[None]


@dataclass(frozen=True)
class _Settings:
    lengths: tuple[int, ...]
    causal: bool
    scaling: float
    compiled: bool

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """The tokens of each block of queries, and of the keys that they may see."""
        start = 0
        for length in self.lengths:
            end = start + length
            for first in range(start, end, BLOCK):
                last = min(end, first + BLOCK)
                yield slice(first, last), slice(start, last if self.causal else end)
            start = end


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: _Settings
    ) -> torch.Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        heads, tokens, width = query.shape
        out = query.new_empty(tokens, heads, width)
        normalizer = torch.empty(heads, tokens, 1, dtype=torch.float32)
        for rows, seen in settings.blocks():
            scores = _scores(query, key, rows, seen, settings.causal)
            weights, normalizer[:, rows] = softmax(scores, settings.scaling, settings.compiled)
            mixed = torch.bmm(_grouped(weights, key), value[:, seen])
            out[rows] = mixed.view(heads, -1, width).transpose(0, 1)
        ctx.save_for_backward(query, key, value, normalizer)
        ctx.settings = settings
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        query, key, value, normalizer = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for rows, seen in ctx.settings.blocks():
            d_mixed = _grouped(d_out[rows].transpose(0, 1), key)
            scores = _scores(query, key, rows, seen, ctx.settings.causal)
            d_weights = torch.bmm(d_mixed, value[:, seen].transpose(1, 2)).view(scores.shape)
            weights, d_scores = softmax_backward(
                scores, d_weights, normalizer[:, rows], ctx.settings.scaling, ctx.settings.compiled
            )
            weights, d_scores = _grouped(weights, key), _grouped(d_scores, key)
            d_query[:, rows] = torch.bmm(d_scores, key[:, seen]).view(len(query), -1, query.shape[-1])
            d_key[:, seen].baddbmm_(d_scores.transpose(1, 2), _grouped(query[:, rows], key))
            d_value[:, seen].baddbmm_(weights.transpose(1, 2), d_mixed)
        return d_query, d_key, d_value, None


def _grouped(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[query heads, rows, n] to [key heads, query heads per key head x rows, n]: they share their keys."""
    return x.reshape(len(key), -1, x.shape[-1])


def _scores(query: torch.Tensor, key: torch.Tensor, rows: slice, seen: slice, causal: bool) -> torch.Tensor:
    """Unscaled scores of a block, [query heads, rows, keys], -inf where a query may not see a key."""
    scores = torch.bmm(_grouped(query[:, rows], key), key[:, seen].transpose(1, 2))
    scores = scores.view(len(query), -1, scores.shape[-1])
    if causal:
        # Only the last keys are those of the block itself; all others are in the past of every query.
        size = rows.stop - rows.start
        future = torch.full((size, size), float("-inf"), dtype=scores.dtype).triu(1)
        scores[:, :, -size:] += future
    return scores
