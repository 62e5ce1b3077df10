"""Memory: what one GPU must hold to train a recipe, estimated from shapes alone, without loading a weight.

Standard library at import, so that `launch/` can size a model before anything is installed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcls.recipe import Recipe

# What a CUDA context, its libraries and the allocator's fragments take, GiB.
CONTEXT_GIB = 1.0


@dataclass
class Shape:
    """A model in numbers. linear: weights in the layers' linear modules; other: embeddings and norms;
    adapted: weights of the linear modules' input plus output sides that carry an adapter, per rank of LoRA."""

    layers: int
    hidden: int
    linear: float
    other: float
    adapted: float


@dataclass
class Estimate:
    """GiB on each GPU. weights: frozen and trained. state: gradients and optimizer moments."""

    weights: float
    state: float
    activations: float

    @property
    def total(self) -> float:
        """With the context."""
        return self.weights + self.state + self.activations + CONTEXT_GIB


def estimate(shape: Shape, recipe: Recipe, sharding: str, ranks: int) -> Estimate:
    """What a GPU holds while training.

    Parameters
    ----------
    sharding: "none" (one process, DDP), "moments" (ZeRO-2) or "all" (FSDP, ZeRO-3).
    ranks: processes.

    Notes
    -----
    Frozen weights: 4.127 bits in NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3), else 2 or
    4 bytes. Trained ones: float32 weight, gradient and two AdamW moments, 16 bytes (10 with 8-bit moments).
    Activations: 34 bytes x tokens x hidden for a layer at 16 bits with fused attention (Korthikanti et al. 2022,
    "Reducing Activation Recomputation in Large Transformer Models", equation 1 without its attention term); with
    checkpointing only the layer's 16-bit input, and one layer whole.
    """
    model, train = recipe.model, recipe.train
    storage = 4.0 if model.torch_dtype == "float32" else 2.0
    full = model.lora_r == 0
    frozen = 0.0 if full else shape.linear * (4.127 / 8 if model.use_4bit else storage) + shape.other * storage
    trained = shape.linear + shape.other if full else model.lora_r * shape.adapted
    eight_bit = model.use_4bit and train.optim_8bit_when_4bit and sharding == "none"
    weights, state = frozen + 4 * trained, trained * (6.0 if eight_bit else 12.0)
    if sharding == "all":
        # Besides its part, a rank holds two layers whole: the one at work and the one being fetched.
        weights = weights / ranks + 2 * (shape.linear / shape.layers) * storage
    if sharding != "none":
        state /= ranks
    checkpointed = model.use_4bit if train.gradient_checkpointing is None else train.gradient_checkpointing
    given = train.micro_batch_tokens
    tokens = given if isinstance(given, int) else train.batch_size * recipe.data.max_length
    layer = 34.0 * tokens * shape.hidden * storage / 2
    recomputed = min(shape.layers, train.checkpoint_layers or shape.layers) if checkpointed else 0
    activations = recomputed * tokens * shape.hidden * storage + max(1, shape.layers - recomputed) * layer
    gib = 2.0**30
    return Estimate(weights / gib, state / gib, activations / gib)


def shape_of(config: Any, recipe: Recipe) -> Shape:
    """The shape of a `transformers` configuration, counted on the meta device."""
    import torch
    from torch import nn
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=recipe.model.trust_remote_code)
    targets = recipe.model.lora_target_modules
    linear = adapted = 0
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Linear):
            linear += module.weight.numel()
            if targets == ["all-linear"] or name.rpartition(".")[2] in targets:
                adapted += module.in_features + module.out_features
    whole = sum(p.numel() for p in model.parameters())
    text = config.get_text_config()
    return Shape(text.num_hidden_layers, text.hidden_size, float(linear), float(whole - linear), float(adapted))


def guessed_shape(billions: float) -> Shape:
    """A Llama-like shape of about this size: width 128 x depth, and 12 x width squared weights a layer."""
    hidden = round((billions * 1e9 * 128 / 12) ** (1 / 3))
    layers = max(1, round(hidden / 128))
    # Seven linear modules a layer: about 20 widths of inputs and outputs together.
    return Shape(layers, hidden, 12.0 * layers * hidden**2, 0.1 * billions * 1e9, 20.0 * layers * hidden)


def sharding_of(profile: dict[str, Any]) -> str:
    """What an accelerate profile spreads over the ranks: "none", "moments" or "all"."""
    kind = profile.get("distributed_type")
    if kind == "FSDP":
        return "all"
    if kind == "DEEPSPEED":
        return "all" if int(profile["deepspeed_config"]["zero_stage"]) == 3 else "moments"
    return "none"


def model_billions(name: str) -> float | None:
    """Parameters in billions, from a folder's config.json or from a name such as ``Llama-3.2-1B``."""
    config = Path(name) / "config.json"
    if config.is_file():
        shape = json.loads(config.read_text(encoding="utf-8"))
        hidden, layers = shape.get("hidden_size", 0), shape.get("num_hidden_layers", 0)
        feed_forward, vocabulary = shape.get("intermediate_size") or 4 * hidden, shape.get("vocab_size", 0)
        return round((layers * (4 * hidden**2 + 3 * hidden * feed_forward) + vocabulary * hidden) / 1e9, 3)
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([bBmM])(?![a-zA-Z])", name)
    if found is None:
        return None
    return float(found[1]) * (1.0 if found[2] in "bB" else 1e-3)
