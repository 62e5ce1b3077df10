"""What a training step should cost: the memory and the arithmetic that the measured step is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llmcls.diagnosis.findings import NotApplicable
from llmcls.model.cards import card_of
from llmcls.model.memory import GIB
from llmcls.model.stand_in import kind_of
from llmcls.model.step_trace import MicroBatch, StepTracer, TraceError
from llmcls.recipe.schema import Recipe

# A traced step is within a tenth of a real one, apart from what the allocator of a GPU loses.
SLACK = 1.15


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
    least_seconds : float, optional
        The time that the step takes at least, if the device is a known card.
    """

    peak_gib: float
    slack: float
    flops: float
    least_seconds: float | None = None


def expected_step(recipe: Recipe, config: Any, lengths: list[int], device: torch.device) -> Expected:
    """The expected cost of a step over texts of these lengths.

    Parameters
    ----------
    recipe : Recipe
    config : `transformers` configuration
        Of the model.
    lengths : list of int
        Tokens of each text.
    device : torch.device

    Returns
    -------
    Expected

    Raises
    ------
    NotApplicable
        If the model cannot be traced.
    """
    try:
        cost = StepTracer(recipe, config, kind_of(device)).cost(MicroBatch(tuple(lengths)))
    except TraceError as error:
        raise NotApplicable(f"the model cannot be traced ({error})") from error
    card = card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    least = None if card is None else card.seconds(cost.kernels)
    return Expected(cost.peak / GIB, SLACK, float(cost.useful_flops), least)
