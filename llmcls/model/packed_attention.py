"""Attention within each text of a packed row.

A packed row holds text after text without padding, with positions that restart at each text. Everything but attention
works on single tokens; attention gets the lengths of the texts and keeps them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from llmcls.data.batches import send
from llmcls.model.stand_in import FLASH_WIDTH, DeviceKind, device_kind

FLASH_FORWARD = torch.ops.aten._flash_attention_forward
FLASH_BACKWARD = torch.ops.aten._flash_attention_backward


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
    flash : bool
        Whether 16-bit attention runs in one kernel for all texts; else neighbours of the same length share one.
    blocks : dict
        What `llmcls.model.blocked_attention` made of it, for all layers.
    """

    lengths: list[int]
    position_ids: torch.Tensor
    last_token_index: torch.Tensor
    cu_seqlens: torch.Tensor
    query_cu_seqlens: torch.Tensor
    causal: bool = True
    flash: bool = False
    blocks: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Neighbours of the same length: the length, and the number of texts. Batches have the longest texts first."""
        return [(length, len(list(same))) for length, same in groupby(self.lengths)]


def make_pack(lengths: list[int], device: torch.device, causal: bool = True, flash: bool = False) -> Pack:
    """Describe texts of these lengths, without waiting for the device.

    Parameters
    ----------
    lengths : list of int
        Tokens of each text, at least 1.
    device : torch.device
        Where the packed row is.
    causal, flash : bool
        See `Pack`.
    """
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    position_ids = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)

    def put(values: np.ndarray, dtype: Any) -> torch.Tensor:
        return send(torch.from_numpy(values.astype(dtype)), device)

    return Pack(
        lengths=list(lengths),
        position_ids=put(position_ids, np.int64)[None],
        last_token_index=put(cu_seqlens[1:] - 1, np.int64),
        cu_seqlens=put(cu_seqlens, np.int32),
        query_cu_seqlens=put(np.arange(len(lengths) + 1), np.int32),
        causal=causal,
        flash=flash,
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
    kind, narrow = query.device.type, value.dtype
    # Rotary embedding in float32 makes queries and keys wider than the values that autocast computed.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else narrow
    if device_kind(query) == "cpu":
        # On a CPU, 16-bit attention is several times slower backwards than float32 attention, and less exact.
        dtype = torch.float32
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    grouped = query.shape[1] != key.shape[1]
    causal = pack.causal and not last_token_only
    # The kernel for all texts has no dropout.
    if pack.flash and dtype != torch.float32 and not dropout:
        q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        longest = max(pack.lengths)
        where = (
            (pack.query_cu_seqlens, pack.cu_seqlens, 1, longest)
            if last_token_only
            else (pack.cu_seqlens, pack.cu_seqlens, longest, longest)
        )
        # For a query at the end of its text, every key is in the past.
        out: torch.Tensor = _Flash.apply(q, k, v, where, causal, scaling)  # type: ignore[no-untyped-call]
        return out[None]
    if grouped and device_kind(query) != "cpu":
        # Where there is no flash attention, a GPU has no fast kernel for grouped heads.
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        grouped = False
    # Splitting makes views, and its backward pass is one concatenation; padding would copy in both directions.
    sizes = [length * texts for length, texts in pack.runs]
    queries = query.split([texts for _, texts in pack.runs] if last_token_only else sizes, dim=2)
    keys, values = key.split(sizes, dim=2), value.split(sizes, dim=2)
    parts = []
    with torch.autocast(kind, enabled=False):
        for q, k, v, (_, texts) in zip(queries, keys, values, pack.runs, strict=True):
            q, k, v = _apart(q, texts), _apart(k, texts), _apart(v, texts)
            part = F.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scaling, dropout_p=dropout, enable_gqa=grouped
            )
            parts.append(part.transpose(1, 2).reshape(1, -1, *part.shape[1::2]))
    # Joined in the order of the result, so that callers get it contiguous, as some architectures demand.
    return torch.cat(parts, dim=1).to(narrow)


def _apart(run: torch.Tensor, texts: int) -> torch.Tensor:
    """Texts of the same length: a view of [1, heads, tokens, width] as [texts, heads, tokens of a text, width]."""
    return run if texts == 1 else run.unflatten(2, (texts, -1)).squeeze(0).transpose(0, 1)


class _Flash(torch.autograd.Function):
    """Flash attention of all texts in one kernel (Dao 2023, "FlashAttention-2").

    `torch.nn.attention.varlen` calls the same operations, but through two more, which take the host ten times as long
    as starting the kernels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        where: tuple[torch.Tensor, torch.Tensor, int, int],
        causal: bool,
        scaling: float | None,
    ) -> torch.Tensor:
        out, normalizer, rng_state, unused, _ = FLASH_FORWARD(
            query, key, value, *where, 0.0, causal, False, scale=scaling
        )
        ctx.save_for_backward(query, key, value, out, normalizer, where[0], where[1], rng_state, unused)
        ctx.longest, ctx.causal, ctx.scaling = where[2:], causal, scaling
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        *saved, rng_state, unused = ctx.saved_tensors
        gradients = FLASH_BACKWARD(d_out, *saved, *ctx.longest, 0.0, ctx.causal, rng_state, unused, scale=ctx.scaling)
        return *gradients, None, None, None


@dataclass(frozen=True)
class HeadShape:
    """The heads of an attention layer: query heads, key heads, and the width of queries and keys, and of values."""

    heads: int
    key_heads: int
    width: int
    value_width: int


def choose_kernel(shape: HeadShape, device: torch.device | DeviceKind, dtype: torch.dtype) -> tuple[str | None, str]:
    """Find the fastest attention for packed rows that works on a device, by trying it forward and backward.

    Parameters
    ----------
    shape : HeadShape
        Of the real model, because kernels limit the width of a head.
    device : torch.device or DeviceKind
        A `DeviceKind` is believed.
    dtype : torch.dtype
        Precision of the computation.

    Returns
    -------
    "flash" (one kernel for all texts), "per text" (one kernel per text) or None, and why it is not flash.
    """
    if device.type == "cpu":
        reason = "flash attention needs a GPU"
    elif dtype == torch.float32:
        reason = "flash attention needs 16 bits (model.torch_dtype)"
    elif isinstance(device, DeviceKind):
        # The kernel wants one width, for keys and values.
        same_width = shape.width == shape.value_width
        if device.flash and same_width and shape.width <= FLASH_WIDTH and shape.width % 8 == 0:
            return "flash", ""
        reason = f"no flash attention for heads of width {shape.width}"
    else:
        error = _try_kernel(shape, device, dtype, flash=True)
        if error is None:
            return "flash", ""
        reason = f"flash attention does not work here: {error}"
    if isinstance(device, DeviceKind):
        return "per text", reason
    error = _try_kernel(shape, device, dtype, flash=False)
    return ("per text", reason) if error is None else (None, f"{reason}; attention per text: {error}")


def _try_kernel(shape: HeadShape, device: torch.device, dtype: torch.dtype, flash: bool) -> str | None:
    """None if packed attention runs forward and backward, for all tokens and for one query per text; else the error."""
    lengths = [9, 5, 5, 2]
    try:
        pack = make_pack(lengths, device, flash=flash)
        for queries in (sum(lengths), len(lengths)):
            sizes = [
                (shape.heads, queries, shape.width),
                (shape.key_heads, sum(lengths), shape.width),
                (shape.key_heads, sum(lengths), shape.value_width),
            ]
            # No random numbers: the caller's generator must not notice the trial.
            query, key, value = (
                torch.linspace(-1, 1, heads * tokens * width, device=device, dtype=dtype)
                .view(1, heads, tokens, width)
                .requires_grad_()
                for heads, tokens, width in sizes
            )
            with torch.enable_grad():
                attention(query, key, value, pack, None).float().square().sum().backward()
            gradients = [tensor.grad for tensor in (query, key, value)]
            if not all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients):
                return "its gradients are not finite"
    # AssertionError: a build of torch without this kind of device.
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:160]
    return None
