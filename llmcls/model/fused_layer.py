"""A whole decoder layer with LoRA as one function, forward and backward, for GPUs.

As modules, a layer is a dozen differentiable functions with views between them. The kernels are the same, but in a
small model the host needs longer to find out what to start next than the GPU to compute it, and the GPU waits. Here a
layer is one node of the graph, and the order of its kernels is written down:

    normed = norm(x)     q, k, v = product(normed)     mixed = attention(rotate(q), rotate(k), v)
    h = x + product(mixed)     gate, up = product(norm(h))     out = h + product(activation(gate) * up)

where each product is that of linear layers with adapters, see `llmcls.model.lora_products`. The results are those of
the modules to the last bit, and the same tensors are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmcls.model.formulas import compute
from llmcls.model.fused_lora import MatricesOf, plain_layers
from llmcls.model.lora_products import (
    LoraLinear,
    Product,
    adapted_product,
    adapted_product_backward,
    seeds_for,
    suit_kernels,
)
from llmcls.model.packed_attention import FLASH_BACKWARD, FLASH_FORWARD, Pack
from llmcls.model.stand_in import device_kind

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
# Linear layers that read the same input, in the order in which they are computed.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass(frozen=True)
class LayerKind:
    """How a decoder layer computes.

    Attributes
    ----------
    eps : (float, float)
        Of both norms.
    unit_offsets : (bool, bool)
        See `llmcls.model.fused_ops.rms_norm`.
    activation : str
        See `llmcls.model.fused_ops.gated_activation`.
    """

    eps: tuple[float, float]
    unit_offsets: tuple[bool, bool]
    activation: str


@dataclass(frozen=True)
class _Parts:
    """What a pass over a layer computes with.

    Attributes
    ----------
    kind : LayerKind
    groups : list of list of LoraLinear
        In the order of `GROUPS`.
    copies : list
        What `llmcls.model.lora_products.rounded` returns, for each group.
    pack : Pack
    head_width : int
    scaling : float, optional
        On the scores of attention.
    """

    kind: LayerKind
    groups: list[list[LoraLinear]]
    copies: list[tuple[torch.Tensor, list[torch.Tensor]]]
    pack: Pack
    head_width: int
    scaling: float | None

    @property
    def where(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Queries and keys of each text, as flash attention takes them."""
        longest = max(self.pack.lengths)
        return self.pack.cu_seqlens, self.pack.cu_seqlens, longest, longest


def whole_layer(
    layer: Any,
    kind: LayerKind,
    states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
    pack: Pack | None,
    matrices_of: MatricesOf,
) -> torch.Tensor | None:
    """A decoder layer in training, or None if its modules must compute it.

    They must without a GPU, without 16 bits, without flash attention, where attention has dropout or norms of its own,
    where norms are trained, where an adapter is no plain LoRA, and where someone waits for the call of the layer or of
    one of its modules: an engine may have to collect weights.

    Parameters
    ----------
    layer : nn.Module
        With the parts of a Llama.
    kind : LayerKind
    states : float [1, tokens, width]
    position_embeddings : pair of float [1, tokens, head width], optional
        Cosines and sines.
    pack : Pack, optional
    matrices_of : callable
        `llmcls.model.adapter_copies.AdapterCopies.of`.

    Returns
    -------
    float [1, tokens, width], optional
    """
    if pack is None or not pack.flash or position_embeddings is None or not torch.is_grad_enabled():
        return None
    device, dtype, block, mlp = states.device.type, states.dtype, layer.self_attn, layer.mlp
    wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    if dtype != wanted or dtype not in SIXTEEN_BITS or device_kind(states) != "cuda":
        return None
    if hasattr(block, "q_norm") or hasattr(block, "k_norm") or not getattr(block, "use_rope", True):
        return None
    norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    if (block.training and block.attention_dropout) or any(w.requires_grad or w.dtype != dtype for w in norms):
        return None
    modules = [
        [getattr(owner, name) for name in names] for owner, names in zip((block, block, mlp, mlp), GROUPS, strict=True)
    ]
    called = [layer, layer.input_layernorm, layer.post_attention_layernorm, block, mlp]
    called += [module for group in modules for module in group]
    if any(has_hooks(module) for module in called):
        return None
    groups: list[list[LoraLinear]] = []
    for group in modules:
        layers = plain_layers(group)
        if layers is None or not suit_kernels(layers):
            return None
        groups.append(layers)
    copies = [matrices_of(layers, dtype) for layers in groups]
    parts = _Parts(kind, groups, copies, pack, block.head_dim, getattr(block, "scaling", None))
    matrices = [matrix for layers in groups for matrix in (*[g.a for g in layers], *[g.b for g in layers])]
    out: torch.Tensor = _Layer.apply(states, *position_embeddings, *norms, parts, *matrices)  # type: ignore[no-untyped-call]
    return out


def has_hooks(module: Any) -> bool:
    """Whether someone waits for calls of a module."""
    return any(getattr(module, hooks) for hooks in HOOKS)


class _Layer(torch.autograd.Function):
    """The formulas at the head of this file, on matrices [tokens, width]."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        first_norm: torch.Tensor,
        second_norm: torch.Tensor,
        parts: _Parts,
        *_: torch.Tensor,
    ) -> torch.Tensor:
        kind, seeds = parts.kind, seeds_for(parts.groups, states)
        attending, leaving, opening, closing = zip(parts.groups, parts.copies, seeds, strict=True)
        x = states.reshape(-1, states.shape[-1])
        normed, first_scale = compute("rms_norm", x, first_norm, kind.eps[0], kind.unit_offsets[0], compiled=True)
        (query, key, value), into = adapted_product(normed, *attending)
        query, key = _rotated(parts, query, key, cos, sin, inverse=False)
        value = value.view(len(x), -1, parts.head_width)
        mixed, normalizer, rng_state, unused, _ = FLASH_FORWARD(
            query, key, value, *parts.where, 0.0, parts.pack.causal, False, scale=parts.scaling
        )
        (added,), out_of = adapted_product(mixed.view(len(x), -1), *leaving)
        middle, normed, second_scale = compute(
            "add_rms_norm", x, added, second_norm, kind.eps[1], kind.unit_offsets[1], compiled=True
        )
        (gate, up), wide = adapted_product(normed, *opening)
        (out,), narrow = adapted_product(
            compute("gated_activation", gate, up, kind.activation, compiled=True), *closing
        )
        products = into, out_of, wide, narrow
        # The gradient of the embeddings, which the first layer reads, is not needed.
        first = (x, first_scale, first_norm) if ctx.needs_input_grad[0] else (None, None, None)
        ctx.save_for_backward(
            *first, cos, sin, query, key, value, normalizer, rng_state, unused, middle,
            second_scale, second_norm, gate, up, *[t for p in products for t in (p.rows, p.low, p.a, *p.b)],
        )  # fmt: skip
        ctx.parts, ctx.seeds, ctx.shape = parts, seeds, states.shape
        return out.add_(middle).view(states.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_states: torch.Tensor) -> Any:
        parts, kind = ctx.parts, ctx.parts.kind
        (
            x, first_scale, first_norm, cos, sin, query, key, value, normalizer, rng_state, unused, middle,
            second_scale, second_norm, gate, up, *saved,
        ) = ctx.saved_tensors  # fmt: skip
        into, out_of, wide, narrow = _products(parts.groups, ctx.seeds, saved)
        d_out = d_states.reshape(middle.shape)
        d_active, closing = adapted_product_backward(narrow, [d_out], of_input=True)
        d_gated = compute("gated_activation_backward", d_active, gate, up, kind.activation, compiled=True)
        del d_active
        d_normed, opening = adapted_product_backward(wide, list(d_gated), of_input=True)
        del d_gated
        d_middle = compute(
            "rms_norm_backward", d_normed, d_out, middle, second_norm, second_scale, kind.unit_offsets[1], compiled=True
        )
        d_mixed, leaving = adapted_product_backward(out_of, [d_middle], of_input=True)
        assert d_mixed is not None
        mixed = out_of.rows.view(query.shape)
        d_query, d_key, d_value = FLASH_BACKWARD(
            d_mixed.view(query.shape), query, key, value, mixed, normalizer, *parts.where, 0.0, parts.pack.causal,
            rng_state, unused, scale=parts.scaling,
        )  # fmt: skip
        d_query, d_key = _rotated(parts, d_query, d_key, cos, sin, inverse=True)
        d_projected = [d.reshape(len(middle), -1) for d in (d_query, d_key, d_value)]
        d_normed, attending = adapted_product_backward(into, d_projected, of_input=x is not None)
        d_x = None
        if x is not None:
            d_x = compute(
                "rms_norm_backward", d_normed, d_middle, x, first_norm, first_scale, kind.unit_offsets[0], compiled=True
            ).view(ctx.shape)
        return d_x, None, None, None, None, None, *attending, *leaving, *opening, *closing


def _rotated(
    parts: _Parts, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys, [tokens, heads x width] or [tokens, heads, width], to [tokens, heads, width]."""
    split = [t.view(1, len(t), -1, parts.head_width).transpose(1, 2) for t in (query, key)]
    rotated = compute("rotary", *split, cos, sin, inverse, compiled=True)
    return rotated[0][0].transpose(0, 1), rotated[1][0].transpose(0, 1)


def _products(groups: Sequence[list[LoraLinear]], seeds: Sequence[int], saved: Sequence[torch.Tensor]) -> list[Product]:
    """The products from their tensors, one after the other."""
    found, place = [], 0
    for layers, seed in zip(groups, seeds, strict=True):
        rows, low, a, *b = saved[place : place + 3 + len(layers)]
        found.append(Product(rows, low, a, b, layers, seed))
        place += 3 + len(layers)
    return found
