"""Attention within each text of a packed row.

A packed row holds text after text without padding, with positions that restart at each text. Everything but attention
works on single tokens; attention gets the lengths of the texts and keeps them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen


@dataclass
class Pack:
    """Where the texts are in a packed row.

    Attributes
    ----------
    lengths : list of int
        Tokens of each text, on the host.
    position_ids : int64 [1, tokens]
        From 0 in each text.
    last_token_index : int64 [texts]
        The last token of each text.
    cu_seqlens : int32 [texts + 1]
        Where each text starts, and the end of the row.
    query_cu_seqlens : int32 [texts + 1]
        The same for one query per text: 0, 1, 2, ...
    causal : bool
        Whether a token sees only itself and what comes before it.
    """

    lengths: list[int]
    position_ids: torch.Tensor
    last_token_index: torch.Tensor
    cu_seqlens: torch.Tensor
    query_cu_seqlens: torch.Tensor
    causal: bool = True


def make_pack(lengths: list[int], device: torch.device, causal: bool = True) -> Pack:
    """Describe texts of these lengths, without waiting for the device.

    Parameters
    ----------
    lengths : list of int
        Tokens of each text, at least 1.
    device : torch.device
        Where the packed row is.
    causal : bool
        See `Pack`.
    """
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    position_ids = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)

    def put(values: np.ndarray, dtype: Any) -> torch.Tensor:
        return torch.from_numpy(values.astype(dtype)).to(device, non_blocking=True)

    return Pack(
        lengths=list(lengths),
        position_ids=put(position_ids, np.int64)[None],
        last_token_index=put(cu_seqlens[1:] - 1, np.int64),
        cu_seqlens=put(cu_seqlens, np.int32),
        query_cu_seqlens=put(np.arange(len(lengths) + 1), np.int32),
        causal=causal,
    )


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scaling: float | None, dropout: float = 0.0
) -> torch.Tensor:
    """Scaled dot-product attention within each text.

    Parameters
    ----------
    query : float [1, query heads, tokens, width]
        Or [1, query heads, texts, width]: one query per text, at its last token.
    key, value : float [1, key heads, tokens, width]
        Fewer heads than the query has are shared by groups of query heads.
    pack : Pack
    scaling : float, optional
        Factor on the scores; None means 1 / sqrt(width).
    dropout : float
        Probability of dropping a score.

    Returns
    -------
    float [1, tokens or texts, query heads, width]
    """
    last_token_only = query.shape[2] == len(pack.lengths)
    on_gpu = query.device.type == "cuda"
    # Rotary embedding in float32 makes queries and keys wider than flash attention accepts.
    dtype = torch.get_autocast_dtype("cuda") if on_gpu and torch.is_autocast_enabled("cuda") else value.dtype
    if on_gpu and dtype != torch.float32:
        q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
        out: Any = varlen.varlen_attn(
            q, k, v,
            pack.query_cu_seqlens if last_token_only else pack.cu_seqlens,
            pack.cu_seqlens,
            1 if last_token_only else max(pack.lengths),
            max(pack.lengths),
            scale=scaling,
            # For a query at the end of its text, every key is in the past.
            window_size=(-1, 0) if pack.causal and not last_token_only else (-1, -1),
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return out[None]
    # On a CPU, 16-bit attention is several times slower backwards than float32 attention, and less exact.
    narrow = value.dtype
    # Splitting makes views, and its backward pass is one concatenation; padding would copy in both directions.
    queries = query.float().split(1 if last_token_only else pack.lengths, dim=2)
    keys, values = key.float().split(pack.lengths, dim=2), value.float().split(pack.lengths, dim=2)
    grouped = query.shape[1] != key.shape[1]
    causal = pack.causal and not last_token_only
    with torch.autocast(query.device.type, enabled=False):
        texts = [
            F.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scaling, dropout_p=dropout, enable_gqa=grouped
            )
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
    return torch.cat(texts, dim=2).transpose(1, 2).to(narrow)
