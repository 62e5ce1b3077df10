"""What a training step should cost: the memory and the arithmetic that the measured step is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llmcls.model.memory import CONTEXT_GIB, estimate, shape_of
from llmcls.recipe.schema import Recipe

# The estimate from shapes leaves out what layers keep in float32 and the inputs of the adapter.
SLACK = 1.8


@dataclass(frozen=True)
class Expected:
    """The expected cost of an optimizer step with one micro-batch on one device.

    Attributes
    ----------
    peak_gib : float
        Memory of weights, optimizer and activations, without the context of the device.
    slack : float
        The factor by which a real step may need more.
    flops : float
        Floating-point operations of the forward and the backward pass, without recomputation.
    """

    peak_gib: float
    slack: float
    flops: float


def expected_step(recipe: Recipe, config: Any, lengths: list[int]) -> Expected:
    """The expected cost of a step over texts of these lengths.

    Parameters
    ----------
    recipe : Recipe
    config : `transformers` configuration
        Of the model.
    lengths : list of int
        Tokens of each text.

    Returns
    -------
    Expected

    Notes
    -----
    A token takes two operations for each weight in the forward pass and two for the gradient of the input; full
    fine-tuning takes two more for the gradient of the weight. Causal attention takes 2 x length^2 x width per layer in
    the forward pass, and twice that in the backward pass (Kaplan et al. 2020, "Scaling Laws", table 1).
    """
    shape = shape_of(config, recipe)
    sized = replace(recipe, train=replace(recipe.train, micro_batch_tokens=sum(lengths)))
    peak = estimate(shape, sized, "none", 1).total - CONTEXT_GIB
    passes = 3 if recipe.model.lora_r == 0 else 2
    # With the last token as the state of a text, the last layer computes little more than keys and values.
    computed = shape.layers - (recipe.model.pooling == "last" and shape.layers > 1)
    linear = 2 * passes * shape.linear / shape.layers * sum(lengths)
    attention = 3 * 2 * shape.hidden * sum(length**2 for length in lengths)
    return Expected(peak, SLACK, computed * (linear + attention))
