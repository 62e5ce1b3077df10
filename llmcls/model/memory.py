"""Memory: what one GPU must hold to train a recipe, estimated from shapes alone, without loading a weight.

torch and transformers are imported only where a configuration is measured, so that the choice of a profile is quick.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcls.recipe.defaults import checkpoints_activations, micro_batch_tokens
from llmcls.recipe.schema import Recipe

# What a CUDA context, its libraries and the allocator's fragments take, GiB.
CONTEXT_GIB = 1.0


@dataclass
class Shape:
    """A model in numbers.

    Attributes
    ----------
    layers, hidden : int
    linear : float
        Weights in the linear modules of the layers.
    other : float
        Weights in embeddings and norms.
    adapted : float
        Input plus output widths of the linear modules with an adapter: LoRA's weights per rank.
    """

    layers: int
    hidden: int
    linear: float
    other: float
    adapted: float

    @property
    def parameters(self) -> float:
        """All weights."""
        return self.linear + self.other


@dataclass
class Estimate:
    """GiB on each GPU.

    Attributes
    ----------
    weights : float
        Frozen and trained weights.
    optimizer : float
        Gradients and optimizer state.
    activations : float
    """

    weights: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """The sum, with the CUDA context."""
        return self.weights + self.optimizer + self.activations + CONTEXT_GIB

    def __str__(self) -> str:
        return (
            f"about {self.total:.1f} GiB on each GPU: weights {self.weights:.2f}, gradients and optimizer "
            f"{self.optimizer:.2f}, activations up to {self.activations:.2f}, context {CONTEXT_GIB}"
        )


def estimate(shape: Shape, recipe: Recipe, sharding: str, ranks: int) -> Estimate:
    """What a GPU holds in training.

    Parameters
    ----------
    shape : Shape
    recipe : Recipe
    sharding : str
        "none" (one process, DDP), "optimizer_state" (ZeRO-2) or "all" (FSDP, ZeRO-3).
    ranks : int
        Processes.

    Notes
    -----
    Frozen weights: 4.127 bits in NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3), else 2 or
    4 bytes. Trained weights: float32 weight, gradient and two AdamW moments, 16 bytes (10 with an 8-bit optimizer).
    Activations: 34 bytes x tokens x hidden per layer at 16 bits with fused attention (Korthikanti et al. 2022,
    "Reducing Activation Recomputation in Large Transformer Models", equation 1 without its attention term); with
    checkpointing only the 16-bit input of the layer, and one whole layer.
    """
    model, train = recipe.model, recipe.train
    storage = 4.0 if model.torch_dtype == "float32" else 2.0
    full = model.lora_r == 0
    frozen = 0.0 if full else shape.linear * (4.127 / 8 if model.use_4bit else storage) + shape.other * storage
    trained = shape.parameters if full else model.lora_r * shape.adapted
    eight_bit = model.use_4bit and train.optim_8bit_when_4bit and sharding == "none"
    weights, optimizer = frozen + 4 * trained, trained * (6.0 if eight_bit else 12.0)
    if sharding == "all":
        # Besides its part, a rank holds two whole layers: the one that computes and the one being fetched.
        weights = weights / ranks + 2 * (shape.linear / shape.layers) * storage
    if sharding != "none":
        optimizer /= ranks
    tokens = micro_batch_tokens(recipe)
    layer = 34.0 * tokens * shape.hidden * storage / 2
    recomputed = min(shape.layers, train.checkpoint_layers or shape.layers) if checkpoints_activations(recipe) else 0
    activations = recomputed * tokens * shape.hidden * storage + max(1, shape.layers - recomputed) * layer
    gib = 2.0**30
    return Estimate(weights / gib, optimizer / gib, activations / gib)


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


def model_billions(name: str) -> float | None:
    """Parameters in billions, from a folder's config.json or from a name such as ``Llama-3.2-1B``."""
    config = Path(name) / "config.json"
    if config.is_file():
        shape: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        hidden, layers = shape.get("hidden_size", 0), shape.get("num_hidden_layers", 0)
        feed_forward, vocabulary = shape.get("intermediate_size") or 4 * hidden, shape.get("vocab_size", 0)
        return round((layers * (4 * hidden**2 + 3 * hidden * feed_forward) + vocabulary * hidden) / 1e9, 3)
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([bBmM])(?![a-zA-Z])", name)
    if found is None:
        return None
    return float(found[1]) * (1.0 if found[2] in "bB" else 1e-3)


def memory_lines(recipe: Recipe, config: Any, sharding: str, ranks: int) -> list[str]:
    """The estimate of a recipe in words.

    Parameters
    ----------
    recipe : Recipe
    config : `transformers` configuration, optional
        Of the model; without it, the shape is guessed from the size in the model's name.
    sharding, ranks
        See `estimate`.
    """
    name = recipe.model.model_name
    if config is not None:
        shape, origin = shape_of(config, recipe), "from its configuration"
    elif (billions := model_billions(name)) is not None:
        shape, origin = guessed_shape(billions), f"guessed from the {billions:g} billion parameters in its name"
    else:
        return [f"no estimate: the shape of {name} is unknown"]
    return [
        f"{name}, shape {origin}, {ranks} GPU(s), sharded: {sharding}",
        str(estimate(shape, recipe, sharding, ranks)),
    ]
