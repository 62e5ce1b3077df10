"""Estimate the memory that training a recipe needs on each GPU, from shapes alone; no weight is loaded.

torch and transformers are imported only inside `shape_of`, so that choosing a profile is quick.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcls.recipe.defaults import checkpoints_activations, micro_batch_tokens, wants_8bit_optimizer
from llmcls.recipe.schema import Recipe

# GiB for the CUDA context, its libraries and the fragmentation of the allocator.
CONTEXT_GIB = 1.0


@dataclass
class Shape:
    """The size of a model.

    Attributes
    ----------
    layers, hidden : int
        Number and width of the layers.
    linear : float
        Weights in the linear modules of the layers.
    other : float
        Weights in embeddings, norms and the head.
    adapted : float
        Sum of the input and output widths of all linear modules with an adapter: the weights that LoRA adds per unit of
        its rank.
    """

    layers: int
    hidden: int
    linear: float
    other: float
    adapted: float

    @property
    def parameters(self) -> float:
        """The number of weights."""
        return self.linear + self.other


@dataclass
class Estimate:
    """Memory of training on each GPU, in GiB.

    Attributes
    ----------
    weights : float
        Frozen and trained weights.
    optimizer : float
        Gradients and optimizer state.
    activations : float
        Upper limit of the activations that are kept for the backward pass.
    """

    weights: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """The sum, including the CUDA context."""
        return self.weights + self.optimizer + self.activations + CONTEXT_GIB

    def __str__(self) -> str:
        return (
            f"about {self.total:.1f} GiB on each GPU: weights {self.weights:.2f}, gradients and optimizer "
            f"{self.optimizer:.2f}, activations up to {self.activations:.2f}, context {CONTEXT_GIB}"
        )


def estimate(shape: Shape, recipe: Recipe, sharding: str, ranks: int) -> Estimate:
    """Estimate what each GPU holds in training.

    Parameters
    ----------
    shape : Shape
    recipe : Recipe
    sharding : str
        "none" (one process, DDP), "optimizer_state" (ZeRO-2) or "all" (FSDP, ZeRO-3).
    ranks : int
        Number of processes.

    Returns
    -------
    Estimate

    Notes
    -----
    - Frozen weights: 4.127 bits in NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3), otherwise 2
      or 4 bytes.
    - Trained weights: float32 weight, gradient and two AdamW moments, 16 bytes (10 with an 8-bit optimizer).
    - Activations: 34 bytes x tokens x hidden per layer at 16 bits with fused attention (Korthikanti et al. 2022,
      "Reducing Activation Recomputation in Large Transformer Models", equation 1 without its attention term). A layer
      with checkpointing keeps only its 16-bit input, and one layer at a time is recomputed in full.
    """
    model, train = recipe.model, recipe.train
    storage = 4.0 if model.torch_dtype == "float32" else 2.0
    full = model.lora_r == 0
    frozen = 0.0 if full else shape.linear * (4.127 / 8 if model.use_4bit else storage) + shape.other * storage
    trained = shape.parameters if full else model.lora_r * shape.adapted
    eight_bit = wants_8bit_optimizer(recipe, trained) and sharding == "none"
    weights, optimizer = frozen + 4 * trained, trained * (6.0 if eight_bit else 12.0)
    if sharding == "all":
        # In addition to its shard, a rank holds two whole layers: the one that computes and the one that is fetched.
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
    """Count the weights of a `transformers` configuration on the meta device.

    Parameters
    ----------
    config : `transformers` configuration
        Of a sequence classifier.
    recipe : Recipe
        Its ``model.lora_target_modules`` determine which modules are adapted.

    Returns
    -------
    Shape
    """
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
    total = sum(p.numel() for p in model.parameters())
    text = config.get_text_config()
    return Shape(text.num_hidden_layers, text.hidden_size, float(linear), float(total - linear), float(adapted))


def guessed_shape(billions: float) -> Shape:
    """A Llama-like shape of about this size: width 128 x depth, and 12 x width squared weights per layer.

    Parameters
    ----------
    billions : float
        Parameters in billions.

    Returns
    -------
    Shape

    Examples
    --------
    >>> shape = guessed_shape(8.0)
    >>> shape.layers, shape.hidden
    (34, 4403)
    """
    hidden = round((billions * 1e9 * 128 / 12) ** (1 / 3))
    layers = max(1, round(hidden / 128))
    # Seven linear modules per layer; their input and output widths add up to about 20 x width.
    return Shape(layers, hidden, 12.0 * layers * hidden**2, 0.1 * billions * 1e9, 20.0 * layers * hidden)


def model_billions(name: str) -> float | None:
    """The number of parameters in billions, from the config.json of a folder or from the name of a model.

    Parameters
    ----------
    name : str
        A folder, or a name with a size, such as ``Llama-3.2-1B``.

    Returns
    -------
    float, or None if the size is unknown

    Examples
    --------
    >>> model_billions("meta-llama/Llama-3.2-1B")
    1.0
    >>> model_billions("HuggingFaceTB/SmolLM2-135M")
    0.135
    >>> model_billions("gpt2") is None
    True
    """
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
    """Describe the estimate of a recipe in words.

    Parameters
    ----------
    recipe : Recipe
    config : `transformers` configuration, optional
        Of the model. If it is None, the shape is guessed from the size in the name of the model.
    sharding : str
    ranks : int
        See `estimate`.

    Returns
    -------
    list of str
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
