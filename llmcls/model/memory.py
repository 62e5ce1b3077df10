"""The memory that training a recipe needs on each GPU, from a traced step."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from transformers import LlamaConfig

from llmcls.model.pretrained import local_config
from llmcls.model.step_trace import MicroBatch, StepCost, StepTracer, TraceError
from llmcls.recipe.defaults import micro_batch_tokens
from llmcls.recipe.schema import Recipe

# GiB for the CUDA context, its libraries and the fragmentation of the allocator.
CONTEXT_GIB = 1.0
GIB = 2.0**30
# Of a guessed model: that of Llama 3.
VOCABULARY = 128256


@dataclass(frozen=True)
class Memory:
    """Memory of training on each GPU, in GiB.

    Attributes
    ----------
    weights : float
        Frozen and trained weights.
    optimizer : float
        Gradients and optimizer state.
    activations : float
        What is kept for the backward pass, and temporary tensors.
    tokens : int
        Of the micro-batch.
    """

    weights: float
    optimizer: float
    activations: float
    tokens: int

    @property
    def total(self) -> float:
        """The sum, including the CUDA context."""
        return self.weights + self.optimizer + self.activations + CONTEXT_GIB

    def __str__(self) -> str:
        return (
            f"about {self.total:.1f} GiB on each GPU: weights {self.weights:.2f}, gradients and optimizer "
            f"{self.optimizer:.2f}, activations {self.activations:.2f} for a micro-batch of {self.tokens:,} tokens, "
            f"context {CONTEXT_GIB}"
        )


def memory_of(cost: StepCost, sharding: str = "none", ranks: int = 1) -> Memory:
    """What each GPU holds in a traced step.

    Parameters
    ----------
    cost : StepCost
    sharding : str
        "none" (one process, DDP), "optimizer_state" (ZeRO-2) or "all" (FSDP, ZeRO-3).
    ranks : int
        Number of processes.

    Notes
    -----
    - DDP keeps a second copy of the gradients, in which it exchanges them.
    - With everything sharded, a rank holds, in addition to its share, what is outside of the layers, and two whole
      layers: the one that computes and the one that is fetched. They arrive in the type of the computation, so that
      autocast makes no copies of them.
    """
    weights, state = float(cost.weights), float(cost.gradients + cost.optimizer_state)
    activations = cost.activations
    if sharding == "none" and ranks > 1:
        state += 4 * cost.trained
    if sharding != "none":
        # 8-bit AdamW needs whole parameters.
        state = (cost.gradients + 8 * cost.trained) / ranks
    if sharding == "all":
        weights = weights / ranks + cost.outside_weights + 2 * cost.layer_weights
        activations -= cost.weight_casts
    return Memory(weights / GIB, state / GIB, activations / GIB, cost.batch.tokens)


def full_texts(recipe: Recipe) -> MicroBatch:
    """The largest micro-batch that a recipe plans for: texts of full length."""
    length = recipe.data.max_length
    texts = max(1, micro_batch_tokens(recipe) // length)
    whole_step = recipe.train.batch_size * recipe.train.gradient_accumulation_steps
    return MicroBatch((length,) * texts, accumulates=texts < whole_step)


def planned_memory(recipe: Recipe, ranks: int, model_size: str | None = None) -> tuple[Memory | None, str]:
    """The memory of a recipe on each GPU that holds the whole model, without the network and without data.

    Parameters
    ----------
    recipe : Recipe
    ranks : int
        Number of processes.
    model_size : str, optional
        Such as "8B", in place of the model's configuration or the size in its name.

    Returns
    -------
    The memory, or None if nothing is known about the model; and what it was estimated from, in words.
    """
    config = None if model_size else local_config(recipe.model, len(recipe.data.label_columns))
    return _traced(recipe, config, model_size or recipe.model.model_name, "none", ranks)


def memory_lines(recipe: Recipe, config: Any, sharding: str, ranks: int) -> list[str]:
    """Describe the memory of a recipe in words.

    Parameters
    ----------
    recipe : Recipe
    config : `transformers` configuration, optional
        Of the model. If it is None, it is guessed from the size in the name of the model.
    sharding : str
    ranks : int
        See `memory_of`.

    Returns
    -------
    list of str
    """
    name = recipe.model.model_name
    memory, basis = _traced(recipe, config, name, sharding, ranks)
    if memory is None:
        return [f"no estimate: {basis}"]
    return [f"{name}, {basis}, {ranks} GPU(s), sharded: {sharding}", str(memory)]


def _traced(recipe: Recipe, config: Any, name: str, sharding: str, ranks: int) -> tuple[Memory | None, str]:
    """The memory of a step with texts of full length, and what it was traced from; None if that is not known."""
    basis = "traced from its configuration"
    if config is None:
        billions = model_billions(name)
        if billions is None:
            return None, f"the shape of {name} is unknown"
        config, basis = guessed_config(billions, 2), f"guessed from {billions:g} billion parameters"
        # A Llama may have none of the modules that the recipe names.
        recipe = replace(recipe, model=replace(recipe.model, lora_target_modules=["all-linear"], lora_layers=None))
    try:
        cost = StepTracer(recipe, config).cost(full_texts(recipe))
    except TraceError as error:
        return None, f"{name} cannot be traced ({error})"
    return memory_of(cost, sharding, ranks), basis


def guessed_config(billions: float, labels: int) -> LlamaConfig:
    """The configuration of a Llama of at least this size, with wide layers, so that an estimate is not too low.

    Parameters
    ----------
    billions : float
        Parameters in billions.
    labels : int

    Notes
    -----
    The width is 128 x depth, the MLP has four times the width, and a quarter of the heads have keys of their own (where
    four divides them), as in Llama 3: 14.5 x width squared weights in a layer, besides 128,256 embeddings.

    Examples
    --------
    >>> config = guessed_config(8.0, labels=2)
    >>> config.num_hidden_layers, config.hidden_size
    (32, 4096)
    """
    layers, weights = 1, 0.0
    while weights < billions * 1e9:
        layers += 1
        width = 128 * layers
        weights = layers * 14.5 * width**2 + VOCABULARY * width
    return LlamaConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=layers,
        num_key_value_heads=layers if layers % 4 else layers // 4, head_dim=128, vocab_size=VOCABULARY,
        max_position_embeddings=1 << 17, pad_token_id=0, id2label={i: str(i) for i in range(labels)},
    )  # fmt: skip


def model_billions(name: str) -> float | None:
    """The number of parameters in billions, from the name of a model.

    Parameters
    ----------
    name : str
        A name with a size, such as ``Llama-3.2-1B``.

    Returns
    -------
    float, or None if the name has no size

    Examples
    --------
    >>> model_billions("meta-llama/Llama-3.2-1B")
    1.0
    >>> model_billions("HuggingFaceTB/SmolLM2-135M")
    0.135
    >>> model_billions("gpt2") is None
    True
    """
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([bBmM])(?![a-zA-Z])", name)
    if found is None:
        return None
    return float(found[1]) * (1.0 if found[2] in "bB" else 1e-3)
