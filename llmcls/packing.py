"""Packing: many texts in one row, without padding, and the last layer computed only where it is read.

A packed micro-batch is one row of tokens, text after text, with positions that begin anew at each text.
Everything but attention works on single tokens, so no padding is computed anywhere; attention is told the
texts' lengths and keeps them apart. A classifier reads one token a text, its last: the last layer needs keys and
values of all tokens, but queries, output projection and MLP only at those. Both are exact.

Architectures that this does not fit, or that turn out different when tried, run right-padded instead.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from llmcls.pooling import pool
from llmcls.shrink import shrink

log = logging.getLogger(__name__)

NAME = "llmcls_packed"
# The parts of a decoder layer that the last layer's short way knows how to join.
LAYER_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
OPTIONAL_PARTS = {"q_norm", "k_norm"}


@dataclass(frozen=True)
class Way:
    """How a model reads packed texts. short: whether its last layer is computed at their last tokens only."""

    pooling: str = "last"
    bidirectional: bool = False
    short: bool = False


@dataclass
class Pack:
    """Where the texts lie in a packed row.

    lengths: tokens of each text. positions: int64 [1, tokens], from 0 in each text. ends: int64 [texts], each
    text's last token. boundaries: int32 [texts + 1], where texts begin, and the end. ones: int32 [texts + 1],
    the boundaries of one query a text. causal: whether a token sees only what is left of it.
    """

    lengths: list[int]
    positions: torch.Tensor
    ends: torch.Tensor
    boundaries: torch.Tensor
    ones: torch.Tensor
    causal: bool = True


def make_pack(lengths: list[int], device: torch.device, causal: bool = True) -> Pack:
    """Positions and boundaries of texts of these lengths, without waiting for the device."""
    boundaries = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(boundaries[-1]) - np.repeat(boundaries[:-1], lengths)

    def put(values: np.ndarray, dtype: Any) -> torch.Tensor:
        return torch.from_numpy(values.astype(dtype)).to(device, non_blocking=True)

    return Pack(
        list(lengths), put(positions, np.int64)[None], put(boundaries[1:] - 1, np.int64), put(boundaries, np.int32),
        put(np.arange(len(lengths) + 1), np.int32), causal,
    )  # fmt: skip


def pooled_states(network: nn.Module, input_ids: torch.Tensor, lengths: list[int], head: Any = None) -> torch.Tensor:
    """One state for each text of a packed row, pooled as `try_packing` was told.

    Parameters
    ----------
    network: a `transformers` sequence classifier prepared by `try_packing`.
    input_ids: int64 [tokens].
    head: for attention pooling.

    Returns
    -------
    float [texts, hidden]
    """
    way = network.packed_way
    pack = make_pack(lengths, input_ids.device, not way.bidirectional)
    states = network.base_model(
        input_ids=input_ids[None], position_ids=pack.positions, use_cache=False, pack=pack
    ).last_hidden_state[0]
    # The last layer's short way leaves one state a text, the long way one a token.
    if way.short and len(states) == len(lengths):
        return states
    return pool(states, pack.boundaries.diff().long(), way.pooling, head)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scaling: float | None, dropout: float = 0.0
) -> torch.Tensor:
    """Attention within each text, causal if the pack is.

    Parameters
    ----------
    query: [1, query heads, tokens, width], or with ``texts`` in the place of ``tokens``: one query a text, at its end.
    key, value: [1, key heads, tokens, width]

    Returns
    -------
    [1, tokens or texts, query heads, width]
    """
    single = query.shape[2] == len(pack.lengths)
    on_gpu = query.device.type == "cuda"
    # Rotary embedding in float32 leaves queries and keys wider than flash attention takes them.
    dtype = torch.get_autocast_dtype("cuda") if on_gpu and torch.is_autocast_enabled("cuda") else value.dtype
    if on_gpu and dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
        # Of one query at the text's end, every key is in the past.
        out = varlen_attn(
            q, k, v,
            pack.ones if single else pack.boundaries, pack.boundaries, 1 if single else max(pack.lengths),
            max(pack.lengths), scale=scaling, window_size=(-1, 0) if pack.causal and not single else (-1, -1),
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return out[None]
    # A CPU's 16-bit attention is several times slower backwards than its float32 one, and less exact.
    wide, narrow = (tensor.float() for tensor in (query, key, value)), value.dtype
    # Splitting makes views, and its backward pass one concatenation; padding would copy in both directions.
    queries, keys, values = (
        tensor.split(1 if single and i == 0 else pack.lengths, dim=2) for i, tensor in enumerate(wide)
    )
    grouped = query.shape[1] != key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        texts = [
            F.scaled_dot_product_attention(
                q, k, v, is_causal=pack.causal and not single, scale=scaling, dropout_p=dropout, enable_gqa=grouped
            )
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
    return torch.cat(texts, dim=2).transpose(1, 2).to(narrow)


def _interface(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, pack: Pack,
    scaling: float | None = None, dropout: float = 0.0, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """`attention` as `transformers` calls it."""
    return attention(query, key, value, pack, scaling, dropout), None


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask is ever built: a tokens x tokens matrix would be the largest tensor of all."""


AttentionInterface.register(NAME, _interface)
AttentionMaskInterface.register(NAME, _no_mask)


def try_packing(
    network: nn.Module, max_length: int, wanted: bool | None, device: torch.device, computes_in: torch.dtype,
    way: Way | None = None,
) -> bool:  # fmt: skip
    """Prepare a sequence classifier for packed rows when it can be; returns whether it is.

    Parameters
    ----------
    wanted: ``train.packing``; None decides by the architecture and the device.
    computes_in: what the recipe computes in.

    Raises
    ------
    ValueError: ``wanted`` is true, and the model cannot be packed; says why.
    """
    if wanted is False:
        return False
    way = way or Way()
    reason = _why_not(network, max_length, device, computes_in, way) or _difference(network, device, computes_in, way)
    if reason is None:
        _pack_from_now_on(network, way)
        return True
    if wanted:
        raise ValueError(reason)
    log.info("micro-batches are padded, not packed: %s", reason)
    return False


def _pack_from_now_on(network: nn.Module, way: Way) -> None:
    network.set_attn_implementation(NAME)
    last = network.base_model.layers[-1]
    network.packed_way = replace(way, short=way.pooling == "last" and _has_short_way(last))
    if network.packed_way.short:
        # On the instance, so that what engines hook into the module's call stays.
        last.forward = partial(_last_layer, last)


def _why_not(
    network: nn.Module, max_length: int, device: torch.device, computes_in: torch.dtype, way: Way
) -> str | None:
    config = network.config.get_text_config()
    if not hasattr(network, "score") or not hasattr(network.base_model, "layers"):
        return f"{type(network).__name__} is no causal decoder"
    if device.type not in ("cpu", "cuda"):
        return f"there is no attention for texts of many lengths on {device.type}"
    # A bidirectional model has no other way, so there it is text by text.
    if device.type == "cuda" and computes_in == torch.float32 and not way.bidirectional:
        return "flash attention computes in 16 bits only (model.torch_dtype)"
    if getattr(config, "attn_logit_softcapping", None):
        return "the model caps its attention scores"
    if not getattr(network, "_supports_attention_backend", False) or not getattr(network, "_supports_sdpa", False):
        return f"{type(network).__name__} has an attention of its own"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if (window and window < max_length) or kinds - {"full_attention", "sliding_attention"}:
        return "the model's layers look at a part of the text only"
    return None


@torch.no_grad()
def _difference(network: nn.Module, device: torch.device, computes_in: torch.dtype, way: Way) -> str | None:
    """None when packed rows give what single texts do, tried on a small model of the same architecture."""
    lengths, kind = [5, 2, 9], type(network).__name__
    tokens = torch.arange(sum(lengths), device=device) % network.config.get_text_config().vocab_size
    state = torch.get_rng_state()
    try:
        trial = type(network)(shrink(network.config)).to(device, computes_in).eval()
        trial.set_attn_implementation("sdpa")
        alone = torch.cat([
            trial.base_model(
                input_ids=text[None], use_cache=False,
                # A ready mask is taken as it is: this one lets every token see every other.
                attention_mask=torch.ones(1, 1, len(text), len(text), dtype=torch.bool, device=device)
                if way.bidirectional else None,
            ).last_hidden_state[0, -1:].float()
            for text in tokens.split(lengths)
        ])  # fmt: skip
        _pack_from_now_on(trial, replace(way, pooling="last"))
        packed = pooled_states(trial, tokens, lengths).float()
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return f"{kind} takes no packed rows ({str(error).splitlines()[0]})"
    finally:
        # The trial's random weights must not change those of the head.
        torch.set_rng_state(state)
    apart = float((packed - alone).abs().max() / alone.abs().max())
    if apart > (1e-4 if computes_in == torch.float32 else 5e-2):
        return f"{kind} gives other states for packed rows (off by {apart:.1e})"
    return None


def _has_short_way(layer: nn.Module) -> bool:
    """Whether a layer is made of the parts that `_last_layer` joins, and of nothing else."""
    parts = {name for name, _ in layer.named_children()}
    attention_parts = {name for name, _ in layer.self_attn.named_children()} if "self_attn" in parts else set()
    return parts == LAYER_PARTS and ATTENTION_PARTS <= attention_parts <= ATTENTION_PARTS | OPTIONAL_PARTS


def _last_layer(
    layer: nn.Module, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor],
    pack: Pack, **_: Any,
) -> torch.Tensor:  # fmt: skip
    """The decoder layer at each text's last token only: [1, tokens, hidden] to [1, texts, hidden]."""
    block = layer.self_attn
    rotate: Callable[..., Any] = sys.modules[type(block).__module__].apply_rotary_pos_emb
    normed = layer.input_layernorm(hidden_states)
    residual, at_ends = hidden_states[:, pack.ends], normed[:, pack.ends]

    def heads(projected: torch.Tensor, norm: str | None = None) -> torch.Tensor:
        split = projected.unflatten(-1, (-1, block.head_dim))
        if norm is not None and hasattr(block, norm):
            split = getattr(block, norm)(split)
        return split.transpose(1, 2)

    query = heads(block.q_proj(at_ends), "q_norm")
    key, value = heads(block.k_proj(normed), "k_norm"), heads(block.v_proj(normed))
    cos, sin = position_embeddings
    # The function rotates two tensors at the same positions; these two have different ones.
    query, _ = rotate(query, query[:, :0], cos[:, pack.ends], sin[:, pack.ends])
    key, _ = rotate(key, key[:, :0], cos, sin)
    mixed = attention(query, key, value, pack, getattr(block, "scaling", None))
    states = residual + block.o_proj(mixed.flatten(2))
    return states + layer.mlp(layer.post_attention_layernorm(states))
