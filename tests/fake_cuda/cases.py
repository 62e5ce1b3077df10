"""What the worker trains on fake CUDA tensors."""

from __future__ import annotations

from typing import Any

# Case to architecture and what is changed in its training.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama padded": ("llama", {"packs": False}),
    "llama checkpointed": ("llama", {"checkpointing": True}),
    "llama full": ("llama", {"full": True}),
    "llama dora": ("llama", {"dora": True}),
    "llama mean": ("llama", {"pooling": "mean"}),
    "llama mean padded": ("llama", {"pooling": "mean", "packs": False}),
    "llama attention": ("llama", {"pooling": "attention"}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3_text", {}),
    "mistral": ("mistral", {}),
    "bert": ("bert", {"packs": False}),
}
