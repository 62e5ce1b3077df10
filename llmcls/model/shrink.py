"""Shrink an architecture to few narrow layers, for rehearsals and trials that must be cheap."""

from __future__ import annotations

import copy
from typing import Any

LAYERS, HEADS, HEAD_WIDTH = 2, 4, 16


def shrink(config: Any) -> Any:
    """Copy a `transformers` configuration and reduce the number and the width of its layers.

    Parameters
    ----------
    config : `transformers` configuration

    Returns
    -------
    `transformers` configuration
        All other settings are unchanged.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    heads, depth = text.num_attention_heads, text.num_hidden_layers
    # The ratio of query heads to key heads decides which kernels run, so grouped heads stay grouped.
    groups = max(1, heads // (getattr(text, "num_key_value_heads", None) or heads))
    sizes = {
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": max(1, HEADS // groups),
        "head_dim": HEAD_WIDTH, "hidden_size": HEADS * HEAD_WIDTH, "intermediate_size": 2 * HEADS * HEAD_WIDTH,
        "embedding_size": HEADS * HEAD_WIDTH,
    }  # fmt: skip
    rotated = getattr(text, "qk_rope_head_dim", None)
    if rotated:
        # Attention from a latent state: a part of each head is rotated. head_dim is that part, or the whole head.
        whole = getattr(text, "head_dim", None) != rotated
        sizes |= {
            "qk_rope_head_dim": HEAD_WIDTH, "qk_nope_head_dim": HEAD_WIDTH, "qk_head_dim": 2 * HEAD_WIDTH,
            "v_head_dim": HEAD_WIDTH, "head_dim": (1 + whole) * HEAD_WIDTH, "num_key_value_heads": HEADS,
        }  # fmt: skip
    for name, value in sizes.items():
        # Configurations map common names to their own: setting hidden_size of GPT-2 sets n_embd.
        if getattr(text, name, None) is not None:
            setattr(text, name, value)
    _cut_settings_per_layer(text, depth, LAYERS)
    return small


def shallow(config: Any, layers: int, vocabulary: int) -> Any:
    """Copy a `transformers` configuration with fewer layers and a smaller vocabulary, but layers of the real width.

    Parameters
    ----------
    config : `transformers` configuration
    layers : int
    vocabulary : int
        Number of tokens. Special tokens beyond it become token 0.
    """
    short = copy.deepcopy(config)
    text = short.get_text_config()
    depth = text.num_hidden_layers
    text.num_hidden_layers, text.vocab_size = min(layers, depth), min(vocabulary, text.vocab_size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        token = getattr(text, name, None)
        if isinstance(token, list) or (token is not None and token >= text.vocab_size):
            setattr(text, name, 0)
    _cut_settings_per_layer(text, depth, text.num_hidden_layers)
    return short


def _cut_settings_per_layer(text: Any, depth: int, layers: int) -> None:
    """Keep the last entries of settings per layer, such as layer_types: `PackedForward` changes the last layer."""
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[-layers:])
