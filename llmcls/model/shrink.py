"""Shrinking: an architecture in few narrow layers, for rehearsals and trials that must not cost a real model."""

from __future__ import annotations

import copy
from typing import Any

LAYERS, HEADS, HEAD_WIDTH = 2, 4, 16


def shrink(config: Any) -> Any:
    """A copy of a `transformers` configuration with few narrow layers and everything else as it was."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    heads = text.num_attention_heads
    # Grouped heads stay grouped: the ratio of query to key heads decides which kernels run.
    groups = max(1, heads // (getattr(text, "num_key_value_heads", None) or heads))
    sizes = {
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": max(1, HEADS // groups),
        "head_dim": HEAD_WIDTH, "hidden_size": HEADS * HEAD_WIDTH, "intermediate_size": 2 * HEADS * HEAD_WIDTH,
        "embedding_size": HEADS * HEAD_WIDTH,
    }  # fmt: skip
    for name, value in sizes.items():
        # attribute_map: GPT-2 calls its width n_embd, and setting hidden_size sets that.
        if getattr(text, name, None) is not None:
            setattr(text, name, value)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:LAYERS]
    return small
