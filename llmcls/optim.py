"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

import torch
from torch import nn

from llmcls.engine import torch_optimizer
from llmcls.recipe import Recipe

log = logging.getLogger(__name__)


def build_optimizer(
    model: nn.Module, recipe: Recipe, device: torch.device, sharded: bool = False
) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; 8-bit when the model is 4-bit and the recipe does not forbid it.

    ``sharded``: the engine hands each rank a part of every parameter (FSDP, DeepSpeed). The 8-bit kernel knows
    no such tensors, and its moments are small there anyway.

    Weight decay is kept off vectors (biases, norms), as in Loshchilov & Hutter's and all later practice.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": recipe.train.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    rate = recipe.train.learning_rate
    if recipe.model.use_4bit and recipe.train.optim_8bit_when_4bit:
        reason = "the engine shards the optimizer's state" if sharded else _why_no_8bit(device)
        if reason is None:
            import bitsandbytes

            return bitsandbytes.optim.AdamW8bit(groups, lr=rate)
        log.warning("8-bit AdamW is not used on %s (%s); torch's AdamW is", device.type, reason)
    return torch.optim.AdamW(groups, lr=rate, fused=device.type in ("cpu", "cuda"))


def _why_no_8bit(device: torch.device) -> str | None:
    """None when one 8-bit step works on ``device``, else what went wrong."""
    try:
        import bitsandbytes

        # 8-bit state begins at 4,096 elements; a smaller probe would prove nothing.
        weight = nn.Parameter(torch.zeros(64, 128, device=device))
        weight.grad = torch.ones_like(weight)
        bitsandbytes.optim.AdamW8bit([weight], lr=1e-3).step()
    except (ImportError, RuntimeError, NotImplementedError, AttributeError, KeyError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None if bool((weight < 0).all()) else "its step does not change the weights"


def learning_rate_factor(step: int, total: int, warmup_ratio: float, kind: str) -> float:
    """The share of the peak learning rate that optimizer step ``step`` (0-based) of ``total`` uses.

    Linear warm-up over the first ``warmup_ratio`` of the steps, then cosine (Loshchilov & Hutter 2017,
    SGDR, without restarts), linear or constant. A function of the step alone, so resuming needs no state.
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Use ``rate`` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_name(optimizer: Any) -> str:
    """For logs: the class and where it comes from."""
    inner = torch_optimizer(optimizer)
    module = inspect.getmodule(type(inner))
    return f"{type(inner).__name__} ({module.__name__.split('.')[0] if module else 'unknown'})"
