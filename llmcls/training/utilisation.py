"""The share of what its GPUs can compute that a training reaches (model FLOP utilisation)."""

from __future__ import annotations

import re

import torch
from torch import nn

from llmcls.model.cards import card_of

LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.\d+\.")


def token_flops(model: nn.Module) -> float:
    """The FLOPs of a training step for each token, in the matrix products with the weights of the layers.

    Parameters
    ----------
    model : nn.Module
        Before an engine shards it.

    Returns
    -------
    float
        2 for each weight in the forward pass, 2 for the gradient of its input, and 2 more for its own gradient if it is
        trained (Kaplan et al. 2020, section 2.1). Recomputed activations, attention between tokens, embeddings and the
        head do not count. In the backward pass, weights below the first trained one are counted too.
    """
    total = 0.0
    for name, parameter in model.named_parameters():
        quantized = getattr(parameter, "quant_state", None)
        if LAYER.search(name) and (parameter.dim() >= 2 or quantized is not None):
            weights = parameter.numel() if quantized is None else quantized.shape.numel()
            total += (6.0 if parameter.requires_grad else 4.0) * weights
    return total


def share_of_peak(flops: float, device: torch.device, processes: int, sixteen_bits: bool) -> float | None:
    """The share of the peak of its GPUs that a training reaches; None if their peak is not known.

    Parameters
    ----------
    flops : float
        Per second, on all GPUs together.
    device : torch.device
    processes : int
        GPUs.
    sixteen_bits : bool
        Whether matrix products are in float16 or bfloat16.
    """
    card = card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" and flops else None
    if card is None:
        return None
    return flops / (processes * (card.sixteen_bits if sixteen_bits else card.float32))
