"""Fused kernels in a classifier: which modules get them, chosen by trial.

`FusedKernels` replaces the ``forward`` of single modules, so hooks that engines put on their calls keep working, and
names, parameters and saved files stay as they are:

- root-mean-square norms, residual connections, gated MLPs and rotary embeddings run as the operations of
  `llmcls.model.fused_ops`;
- layers with a LoRA adapter run as in `llmcls.model.fused_lora`; those that read the same input, together;
- the body of the model keeps `llmcls.model.adapter_copies` of the adapters while it runs.

What a module computes is found out by trying it on numbers, not by its class name. What does not match keeps its own
``forward``.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from llmcls.model import packed_attention
from llmcls.model.adapter_copies import AdapterCopies
from llmcls.model.blocked_attention import blocked_attention
from llmcls.model.fused_layer import LayerKind, has_hooks, whole_layer
from llmcls.model.fused_lora import lora_linear, plain_layers, project, project_layers
from llmcls.model.fused_ops import ACTIVATIONS, add_rms_norm, gated_activation, rms_norm, rotary
from llmcls.model.packed_attention import Pack
from llmcls.model.packed_forward import ATTENTION_PARTS, LAYER_PARTS, OPTIONAL_PARTS
from llmcls.model.stand_in import device_kind

MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
# Bytes of the widest tensors of an MLP, gate and up, that stay in the cache of a CPU until they are read again.
CACHED = 1 << 24
# How far a fused operation may be from the module that it replaces, on float32 numbers of about 1.
TOLERANCE = 1e-5


class FusedKernels:
    """Replaces ``forward`` methods in a model by fused ones; `detach` restores them.

    Parameters
    ----------
    model : nn.Module
        A `transformers` sequence classifier, with or without a peft adapter.
    compiled : bool
        Whether the formulas of `llmcls.model.fused_ops` are compiled.
    packed : bool
        Whether the model reads packed rows; then its attention layers are fused too.
    """

    def __init__(self, model: nn.Module, compiled: bool, packed: bool) -> None:
        self.model, self.compiled, self.packed = model, compiled, packed
        self.copies = AdapterCopies(model)
        self._replaced: list[nn.Module] = []

    def attach(self) -> FusedKernels:
        """Replace the methods; returns the object itself."""
        network: Any = self.model
        network = network.get_base_model() if hasattr(network, "get_base_model") else network
        body = getattr(network, "base_model", None)
        for module in self.model.modules():
            forward = None if "forward" in vars(module) else self._fused_forward(module)
            if forward is None and module is body and self.compiled:
                forward = partial(_body, module, self.copies)
            if forward is not None:
                module.forward = forward
                self._replaced.append(module)
        return self

    def detach(self) -> None:
        """Restore the methods."""
        for module in self._replaced:
            del module.forward
        self._replaced.clear()

    def _fused_forward(self, module: Any) -> Callable[..., Any] | None:
        """The fused ``forward`` of one module, or None if it keeps its own."""
        if lora_linear(module) is not None:
            return partial(_lora_layer, module, self.compiled, self.copies)
        if (unit_offset := _norm_kind(module)) is not None:
            return partial(_norm_layer, module, unit_offset, self.compiled)
        if (activation := _mlp_kind(module)) is not None:
            return partial(_mlp_layer, module, activation, self.compiled, self.copies)
        if (unit_offsets := _layer_kind(module)) is not None:
            whole = self._whole_kind(module, unit_offsets)
            return partial(_decoder_layer, module, unit_offsets, self.compiled, whole, self.copies)
        if self.packed and _is_attention(module):
            return partial(_attention_layer, module, rotary_of(module, self.compiled), self.compiled, self.copies)
        return None

    def _whole_kind(self, layer: Any, unit_offsets: tuple[bool, bool]) -> LayerKind | None:
        """What `whole_layer` needs to know of a layer with these norms, or None if it does not apply."""
        block, activation = layer.self_attn, _mlp_kind(layer.mlp)
        if not (self.packed and self.compiled and activation is not None and _is_attention(block)):
            return None
        eps = tuple(_eps(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm))
        # The architecture's own rotary embedding is left to its modules.
        rotates = isinstance(rotary_of(block, self.compiled), partial)
        return LayerKind(eps, unit_offsets, activation) if rotates else None  # type: ignore[arg-type]


def fused_kinds(network: nn.Module) -> tuple[set[bool], set[str]]:
    """The kinds of `rms_norm`, by ``unit_offset``, and the activations of gated MLPs that a network has."""
    norms = {_norm_kind(module) for module in network.modules()}
    activations = {_mlp_kind(module) for module in network.modules()}
    return norms - {None}, activations - {None}  # type: ignore[return-value]


def rotary_of(attention: Any, compiled: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The rotary embedding of an attention layer: the fused one if it computes the same, else the architecture's."""
    own = inspect.getmodule(type(attention)).apply_rotary_pos_emb  # type: ignore[union-attr]
    width = attention.head_dim
    generator = torch.Generator().manual_seed(0)
    query, key, cos, sin = (
        torch.randn(shape, generator=generator)
        for shape in ((1, 4, 3, width), (1, 2, 3, width), (1, 3, width), (1, 3, width))
    )
    same = _same(lambda: own(query, key, cos, sin), lambda: rotary(query, key, cos, sin))
    return partial(rotary, compiled=compiled) if same else own


def _norm_kind(module: Any) -> bool | None:
    """``unit_offset`` of `rms_norm` if a module is such a norm, else None."""
    weight = getattr(module, "weight", None)
    eps = _eps(module)
    if next(module.children(), None) is not None or weight is None or weight.dim() != 1 or eps is None:
        return None
    if "norm" not in type(module).__name__.lower() or getattr(module, "bias", None) is not None:
        return None
    other = nn.Parameter(torch.linspace(-0.5, 1.5, weight.shape[0]), requires_grad=False)
    trial = _copy_with(module, {"weight": other}, {})
    x = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0))
    for unit_offset in (False, True):
        if _same(partial(trial, x), partial(rms_norm, x, other, eps, unit_offset)):
            return unit_offset
    return None


def _eps(module: Any) -> float | None:
    """The constant that a norm adds to the mean square."""
    for name in ("variance_epsilon", "eps"):
        if isinstance(value := getattr(module, name, None), float):
            return value
    return None


def _copy_with(module: Any, parameters: dict[str, Any], children: dict[str, Any]) -> Any:
    """A module of the same class and settings with other parameters and children, small and on the CPU."""
    copy = object.__new__(type(module))
    copy.__dict__.update({name: value for name, value in vars(module).items() if name != "forward"})
    copy._parameters, copy._modules = parameters, children
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(copy, name, OrderedDict())
    return copy


def _mlp_kind(module: Any) -> str | None:
    """The activation of a gated MLP if it is one that is fused, else None."""
    if {name for name, _ in module.named_children()} != MLP_PARTS:
        return None
    # The parts alone do not say how they are joined, so try them with small weights.
    generator = torch.Generator().manual_seed(0)
    gate, up, down = (_Product(torch.randn(4, 4, generator=generator)) for _ in range(3))
    parts = {"gate_proj": gate, "up_proj": up, "down_proj": down, "act_fn": module.act_fn}
    copy = _copy_with(module, {}, parts)
    x = torch.randn(3, 4, generator=generator)
    for activation in ACTIVATIONS:
        if _same(partial(copy, x), partial(_gated, gate, up, down, activation, x)):
            return activation
    return None


def _layer_kind(module: Any) -> tuple[bool, bool] | None:
    """``unit_offset`` of both norms of a decoder layer that is joined as `_decoder_layer` does it, else None."""
    if {name for name, _ in module.named_children()} != LAYER_PARTS:
        return None
    first, second = _norm_kind(module.input_layernorm), _norm_kind(module.post_attention_layernorm)
    if first is None or second is None:
        return None
    generator = torch.Generator().manual_seed(0)
    parts = {name: _Product(torch.randn(4, 4, generator=generator)) for name in sorted(LAYER_PARTS)}
    copy = _copy_with(module, {}, parts | {"self_attn": _Attention(parts["self_attn"])})
    x = torch.randn(3, 4, generator=generator)

    def own() -> torch.Tensor:
        # Not through the call of the module, which may be checkpointed.
        states = type(module).forward(copy, x, attention_mask=None, position_embeddings=None)
        return states if isinstance(states, torch.Tensor) else x.new_zeros(0)

    def joined() -> torch.Tensor:
        states = x + parts["self_attn"](parts["input_layernorm"](x))
        return states + parts["mlp"](parts["post_attention_layernorm"](states))

    return (first, second) if _same(own, joined) else None


class _Product(nn.Module):
    """A matrix product, without the random numbers that a new `nn.Linear` draws."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix


class _Attention(nn.Module):
    """A module that is called like attention."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> Any:
        return self.inner(hidden_states), None


def _gated(gate: nn.Module, up: nn.Module, down: nn.Module, activation: str, x: torch.Tensor) -> Any:
    return down(gated_activation(gate(x), up(x), activation))


def _is_attention(module: Any) -> bool:
    """Whether a module is an attention layer of the parts that `_attention_layer` joins."""
    parts = {name for name, _ in module.named_children()}
    known = ATTENTION_PARTS <= parts <= ATTENTION_PARTS | OPTIONAL_PARTS
    return known and hasattr(inspect.getmodule(type(module)), "apply_rotary_pos_emb") and hasattr(module, "head_dim")


@torch.no_grad()
def _same(own: Callable[[], Any], fused: Callable[[], Any]) -> bool:
    """Whether two functions return the same numbers; not if the module's own cannot be called like this."""
    try:
        pairs = [(r if isinstance(r, tuple) else (r,)) for r in (own(), fused())]
        return all(a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE for a, b in zip(*pairs, strict=True))
    # Modules of any library may refuse the call in any way.
    except Exception:
        return False


def _body(module: Any, copies: AdapterCopies, *arguments: Any, **options: Any) -> Any:
    """The layers of a model, with copies of the adapters."""
    with copies.current():
        return type(module).forward(module, *arguments, **options)


def _lora_layer(
    module: Any, compiled: bool, copies: AdapterCopies, x: torch.Tensor, *arguments: Any, **options: Any
) -> Any:
    """A linear layer with LoRA; peft's own ``forward`` where the adapter is merged, disabled or called with options."""
    layers = None if arguments or options else plain_layers([module])
    if layers is None:
        return type(module).forward(module, x, *arguments, **options)
    return project_layers(layers, x, compiled, copies.of)[0]


def _norm_layer(module: Any, unit_offset: bool, compiled: bool, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, module.weight, _eps(module), unit_offset, compiled)  # type: ignore[arg-type]


def _decoder_layer(
    layer: Any,
    unit_offsets: tuple[bool, bool],
    compiled: bool,
    whole: LayerKind | None,
    copies: AdapterCopies,
    hidden_states: torch.Tensor,
    *more: Any,
    **options: Any,
) -> Any:
    """A decoder layer at once, or its modules, with residual connections added together with the norms after them."""
    if more or (layer.training and getattr(layer, "gradient_checkpointing", False)):
        # The class decides what is recomputed.
        return type(layer).forward(layer, hidden_states, *more, **options)
    if whole is not None:
        position, pack = options.get("position_embeddings"), options.get("pack")
        states = whole_layer(layer, whole, hidden_states, position, pack, copies.of)
        if states is not None:
            return states
    first, second = layer.input_layernorm, layer.post_attention_layernorm
    residual, normed = add_rms_norm(hidden_states, None, first.weight, _eps(first), unit_offsets[0], compiled)  # type: ignore[arg-type]
    mixed, _ = layer.self_attn(hidden_states=normed, **options)
    residual, normed = add_rms_norm(residual, mixed, second.weight, _eps(second), unit_offsets[1], compiled)  # type: ignore[arg-type]
    return residual + layer.mlp(normed)


def _mlp_layer(module: Any, activation: str, compiled: bool, copies: AdapterCopies, x: torch.Tensor) -> torch.Tensor:
    def states(part: torch.Tensor) -> torch.Tensor:
        gate, up = project([module.gate_proj, module.up_proj], part, compiled, copies.of)
        found: torch.Tensor = module.down_proj(gated_activation(gate, up, activation, compiled))
        return found

    tokens = _tokens_at_once(module, x)
    return states(x) if tokens >= x.shape[-2] else torch.cat([states(part) for part in x.split(tokens, -2)], -2)


def _tokens_at_once(mlp: Any, x: torch.Tensor) -> int:
    """Tokens for which an MLP is computed before it is computed for the next ones; float [..., tokens, width]."""
    # In training, the wide tensors are kept anyway.
    if device_kind(x) != "cpu" or torch.is_grad_enabled():
        return x.shape[-2]
    parts = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    plain = all(type(getattr(part, "base_layer", part)) is nn.Linear for part in parts)
    # 4-bit weights are dequantized at each call, and an engine may collect weights at each.
    if not plain or any(has_hooks(part) for part in parts):
        return x.shape[-2]
    return max(1, CACHED // (2 * mlp.gate_proj.out_features * x.element_size()))


def _attention_layer(
    block: Any,
    rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    compiled: bool,
    copies: AdapterCopies,
    hidden_states: torch.Tensor,
    position_embeddings: Any = None,
    attention_mask: Any = None,
    pack: Pack | None = None,
    **more: Any,
) -> Any:
    """Attention of all tokens of a packed row, the three projections together; other inputs go to the block's own."""
    if pack is None:
        return type(block).forward(block, hidden_states, position_embeddings, attention_mask, **more)
    query, key, value = project([block.q_proj, block.k_proj, block.v_proj], hidden_states, compiled, copies.of)
    query, key = split_heads(block, query, "q_norm"), split_heads(block, key, "k_norm")
    if getattr(block, "use_rope", True):
        query, key = rotate(query, key, *position_embeddings)
    value, scaling = split_heads(block, value), getattr(block, "scaling", None)
    rate = block.attention_dropout if block.training else 0.0
    if device_kind(value) == "cpu" and value.dtype in (torch.bfloat16, torch.float16) and not rate:
        query, key = query.to(value.dtype), key.to(value.dtype)
        mixed = blocked_attention(query, key, value, pack, scaling, compiled)
    else:
        mixed = packed_attention.attention(query, key, value, pack, scaling, rate)
    return block.o_proj(mixed.flatten(2)), None


def split_heads(block: Any, projected: torch.Tensor, norm: str | None = None) -> torch.Tensor:
    """[1, tokens, heads x width] to [1, heads, tokens, width], with the norm of that name if the layer has one."""
    split = projected.unflatten(-1, (-1, block.head_dim))
    if norm is not None and hasattr(block, norm):
        split = getattr(block, norm)(split)
    return split.transpose(1, 2)
