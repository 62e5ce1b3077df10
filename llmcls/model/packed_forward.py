"""The packed forward pass: many texts in one row, without padding, and the last layer only where it is read.

A classifier that pools at the last token reads one token per text. So the last layer needs keys and values of all
tokens, but queries, output projection and MLP only at those tokens. Both steps are exact.

There are three tiers, chosen by trial: flash attention for all texts in one kernel, attention text by text, and for
architectures that do not fit, or that give other states when tried, right-padded texts.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmcls.model import packed_attention
from llmcls.model.packed_attention import HeadShape, Pack, choose_kernel, make_pack
from llmcls.model.pooling import pool
from llmcls.model.shrink import shrink
from llmcls.model.stand_in import DeviceKind

log = logging.getLogger(__name__)

# Under this name `transformers` finds the packed attention while a `PackedForward` is attached.
ATTENTION_NAME = "llmcls_packed"
# The parts of a decoder layer that `PackedForward` can run at the last tokens only.
LAYER_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
OPTIONAL_PARTS = {"q_norm", "k_norm"}
# In the trial model, weights are amplified: with random weights of the usual size a layer changes its input so little
# that errors in it would not be seen. States are compared in float32, relative to the largest one.
GAIN, TOLERANCE = 8.0, 1e-5


class PackedForward:
    """Lets a decoder read packed rows.

    This object owns everything that packing changes, and `detach` undoes it: the attention function registered with
    `transformers`, the model's choice of attention, and the forward method of the last layer.

    Parameters
    ----------
    network : nn.Module
        A `transformers` sequence classifier with a decoder.
    pooling : str
        "last", "mean" or "attention", see `llmcls.model.pooling.pool`.
    bidirectional : bool
        Whether every token sees the whole text.
    flash : bool
        Whether attention runs in one kernel for all texts; else text by text.
    last_token_only : bool
        Whether the last layer may run at the last tokens only; it does if pooling and architecture allow it.
    """

    _attached: ClassVar[int] = 0

    def __init__(
        self,
        network: Any,
        pooling: str = "last",
        bidirectional: bool = False,
        flash: bool = False,
        last_token_only: bool = True,
    ) -> None:
        self.network, self.pooling, self.bidirectional, self.flash = network, pooling, bidirectional, flash
        known = _has_known_parts(network.base_model.layers[-1])
        self.last_token_only = last_token_only and pooling == "last" and known
        self._replaced_attention: str | None = None

    def attach(self) -> PackedForward:
        """Change the model, so that `states` works; returns the object itself."""
        if self._replaced_attention is not None:
            return self
        ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME] = _attention_function
        PackedForward._attached += 1
        self._replaced_attention = self.network.config._attn_implementation
        self.network.set_attn_implementation(ATTENTION_NAME)
        if self.last_token_only:
            layer = self.network.base_model.layers[-1]
            # Set on the instance: hooks that engines put on the call of the module keep working.
            layer.forward = partial(_last_token_layer, layer, _rotary_function(layer))
        return self

    def detach(self) -> None:
        """Restore the model."""
        if self._replaced_attention is None:
            return
        if self.last_token_only:
            del self.network.base_model.layers[-1].forward
        self.network.set_attn_implementation(self._replaced_attention)
        self._replaced_attention = None
        PackedForward._attached -= 1
        if PackedForward._attached == 0:
            del ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]

    def states(self, input_ids: torch.Tensor, lengths: list[int], head: nn.Module | None = None) -> torch.Tensor:
        """One pooled state per text.

        Parameters
        ----------
        input_ids : int64 [tokens]
            Text after text.
        lengths : list of int
            Tokens of each text.
        head : nn.Module, optional
            The head, whose query attention pooling uses.

        Returns
        -------
        float [texts, hidden]
        """
        pack = make_pack(lengths, input_ids.device, not self.bidirectional, self.flash)
        states: torch.Tensor = self.network.base_model(
            input_ids=input_ids[None], position_ids=pack.position_ids, use_cache=False, pack=pack
        ).last_hidden_state[0]
        if self.last_token_only:
            return states
        return pool(states, pack.cu_seqlens.diff().long(), self.pooling, head)


@dataclass(frozen=True)
class PackingRequest:
    """What a recipe and a device ask of packing.

    Attributes
    ----------
    max_length : int
        Tokens of the longest text.
    device : torch.device or DeviceKind
        What a `DeviceKind` can do is not tried out.
    dtype : torch.dtype
        Precision of the computation.
    wanted : bool, optional
        ``train.packing``; None decides by the architecture and the device.
    pooling, bidirectional
        See `PackedForward`.
    """

    max_length: int
    device: torch.device | DeviceKind
    dtype: torch.dtype
    wanted: bool | None = None
    pooling: str = "last"
    bidirectional: bool = False


def try_packing(network: Any, request: PackingRequest) -> PackedForward | None:
    """Attach a `PackedForward` to a sequence classifier if packed rows work on it.

    Returns
    -------
    The attached object, or None if texts must be padded. The log says why.

    Raises
    ------
    ValueError
        If packing is wanted but does not work; says why.
    """
    if request.wanted is False:
        return None
    choice = _choose(network, head_shape(network.config), request)
    on_gpu = request.device.type != "cpu"
    if choice.kernel is None:
        if request.wanted:
            raise ValueError(choice.reason)
        # A GPU owner should see why the fastest path is not taken.
        log.log(logging.WARNING if on_gpu else logging.INFO, "micro-batches are padded, not packed: %s", choice.reason)
        return None
    if on_gpu and choice.kernel != "flash":
        log.warning("attention runs text by text: %s", choice.reason)
    flash = choice.kernel == "flash"
    packed = PackedForward(network, request.pooling, request.bidirectional, flash, choice.last_token_only)
    return packed.attach()


def packing_in_words(config: Any, request: PackingRequest) -> str:
    """What `try_packing` would do for a model of this configuration, found without its weights.

    Parameters
    ----------
    config : `transformers` configuration
    request : PackingRequest
    """
    if request.wanted is False:
        return "padded (train.packing is false)"
    with torch.random.fork_rng(devices=[]):
        network = AutoModelForSequenceClassification.from_config(shrink(config))
    choice = _choose(network, head_shape(config), request)
    if choice.kernel is None:
        return f"padded: {choice.reason}"
    return "packed, flash attention" if choice.kernel == "flash" else f"packed, attention text by text: {choice.reason}"


@dataclass(frozen=True)
class _Choice:
    """The kernel of packed attention, or None for padded texts; why it is not flash; and see `PackedForward`."""

    kernel: str | None
    reason: str
    last_token_only: bool = True


def _choose(network: Any, heads: HeadShape, request: PackingRequest) -> _Choice:
    """The fastest tier that works for a model on a device."""
    reason = _why_not(network, request)
    if reason is not None:
        return _Choice(None, reason)
    kernel, why_not_flash = choose_kernel(heads, request.device, request.dtype)
    if kernel is None:
        return _Choice(None, why_not_flash)
    # If they differ, the shortcut in the last layer may be what this architecture does not allow.
    for last_token_only in (True, False):
        reason = _difference(network, request, last_token_only)
        if reason is None:
            return _Choice(kernel, why_not_flash, last_token_only)
    return _Choice(None, str(reason))


def _attention_function(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, pack: Pack,
    scaling: float | None = None, dropout: float = 0.0, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """`packed_attention.attention` with the signature that `transformers` calls."""
    return packed_attention.attention(query, key, value, pack, scaling, dropout), None


def _why_not(network: Any, request: PackingRequest) -> str | None:
    """Why the configuration of a model or the device rules packing out, or None."""
    config = network.config.get_text_config()
    if not hasattr(network, "score"):
        return f"{type(network).__name__} is not built like a causal decoder"
    if not hasattr(network.base_model, "layers"):
        return f"{type(network).__name__} does not keep its layers where a Llama does"
    if getattr(config, "attn_logit_softcapping", None):
        return "the model caps its attention scores"
    if not getattr(network, "_supports_attention_backend", False) or not getattr(network, "_supports_sdpa", False):
        return f"{type(network).__name__} has a custom attention"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    other_kinds = kinds - {"full_attention", "sliding_attention"}
    if other_kinds:
        return f"the model has layers of the kind {', '.join(sorted(other_kinds))}"
    if window and window < request.max_length:
        return "the layers of the model see only a part of the text"
    return None


@torch.no_grad()
def _difference(network: Any, request: PackingRequest, last_token_only: bool) -> str | None:
    """None if packed rows give the states of single texts.

    Tried in float32 on the CPU, on a model of the same architecture with few narrow layers and amplified weights: this
    tests the wiring. Whether the kernel runs on the device is tested by `choose_kernel`.
    """
    lengths, kind = [9, 5, 5, 2], type(network).__name__
    tokens = torch.arange(sum(lengths)) % network.config.get_text_config().vocab_size
    packed: PackedForward | None = None
    # The random weights of the trial must not change those of the head, nor depend on the seed of the run.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            with torch.device("cpu"):
                trial = type(network)(shrink(network.config)).float().eval()
            for name, weight in trial.named_parameters():
                if weight.dim() == 2 and "embed" not in name:
                    weight.mul_(GAIN)
            trial.set_attn_implementation("sdpa")
            alone = torch.cat([_last_state(trial, text, request.bidirectional) for text in tokens.split(lengths)])
            packed = PackedForward(trial, "last", request.bidirectional, last_token_only=last_token_only).attach()
            together = packed.states(tokens, lengths)
        # Whatever an architecture raises on an argument that it does not know, its texts can be padded.
        except Exception as error:
            return f"{kind} does not accept packed rows ({(str(error).splitlines() or [type(error).__name__])[0]})"
        finally:
            if packed is not None:
                packed.detach()
    difference = float((together - alone).abs().max() / alone.abs().max())
    # Not "difference > TOLERANCE", which a NaN would pass.
    if not difference <= TOLERANCE:
        return f"{kind} gives other states for packed rows (off by {difference:.1e})"
    return None


def head_shape(config: Any) -> HeadShape:
    """The attention heads of a configuration."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    if getattr(text, "qk_rope_head_dim", None):
        # Attention from a latent state: every head has its own keys, a part of which is rotated.
        return HeadShape(heads, heads, text.qk_nope_head_dim + text.qk_rope_head_dim, text.v_head_dim)
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return HeadShape(heads, getattr(text, "num_key_value_heads", None) or heads, width, width)


def _last_state(network: Any, text: torch.Tensor, bidirectional: bool) -> torch.Tensor:
    """The state of the last token of one text [tokens], as float32 [1, hidden]."""
    # A complete mask is used as it is: this one lets every token see every other token.
    mask = torch.ones(1, 1, len(text), len(text), dtype=torch.bool, device=text.device) if bidirectional else None
    states = network.base_model(input_ids=text[None], use_cache=False, attention_mask=mask).last_hidden_state
    return states[0, -1:].float()


def _has_known_parts(layer: Any) -> bool:
    """Whether a layer consists of the parts that `_last_token_layer` joins, and of nothing else."""
    parts = {name for name, _ in layer.named_children()}
    attention_parts = {name for name, _ in layer.self_attn.named_children()} if "self_attn" in parts else set()
    return parts == LAYER_PARTS and ATTENTION_PARTS <= attention_parts <= ATTENTION_PARTS | OPTIONAL_PARTS


def _rotary_function(layer: Any) -> Any:
    """The rotary embedding of an architecture, a function beside its attention class."""
    return inspect.getmodule(type(layer.self_attn)).apply_rotary_pos_emb  # type: ignore[union-attr]


def _last_token_layer(
    layer: Any, rotate: Any, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor],
    pack: Pack, **_: Any,
) -> torch.Tensor:  # fmt: skip
    """A decoder layer at the last token of each text only: [1, tokens, hidden] to [1, texts, hidden]."""
    block = layer.self_attn
    normed = layer.input_layernorm(hidden_states)
    residual, at_last = hidden_states[:, pack.last_token_index], normed[:, pack.last_token_index]

    def heads(projected: torch.Tensor, norm: str | None = None) -> torch.Tensor:
        split = projected.unflatten(-1, (-1, block.head_dim))
        if norm is not None and hasattr(block, norm):
            split = getattr(block, norm)(split)
        return split.transpose(1, 2)

    query = heads(block.q_proj(at_last), "q_norm")
    key, value = heads(block.k_proj(normed), "k_norm"), heads(block.v_proj(normed))
    cos, sin = position_embeddings
    # The function rotates two tensors at the same positions, but query and key have different ones here.
    # Some layers of SmolLM3 have no rotary embedding.
    if getattr(block, "use_rope", True):
        query, _ = rotate(query, query[:, :0], cos[:, pack.last_token_index], sin[:, pack.last_token_index])
        key, _ = rotate(key, key[:, :0], cos, sin)
    mixed = packed_attention.attention(query, key, value, pack, getattr(block, "scaling", None))
    states = residual + block.o_proj(mixed.flatten(2))
    return states + layer.mlp(layer.post_attention_layernorm(states))
