"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import re
from typing import Any

import torch
from torch import nn

from llmcls.engine.shards import torch_optimizer
from llmcls.recipe.schema import Recipe

log = logging.getLogger(__name__)


def build_optimizer(
    model: nn.Module, recipe: Recipe, device: torch.device, sharded: bool = False
) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; 8-bit when the model is 4-bit and the recipe does not forbid it.

    ``sharded``: the engine hands each rank a part of every parameter (FSDP, DeepSpeed). The 8-bit kernel knows
    no such tensors, and its moments are small there anyway.

    """
    groups = parameter_groups(model, recipe)
    rate = recipe.train.learning_rate
    if recipe.model.use_4bit and recipe.train.optim_8bit_when_4bit:
        reason = "the engine shards the optimizer's state" if sharded else _why_no_8bit(device)
        if reason is None:
            return importlib.import_module("bitsandbytes.optim").AdamW8bit(groups, lr=rate)
        log.warning("8-bit AdamW is not used on %s (%s); torch's AdamW is", device.type, reason)
    return torch.optim.AdamW(groups, lr=rate, fused=device.type in ("cpu", "cuda"))


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The trained parameters by weight decay and by ``scale``, the share of the learning rate that they use.

    Weight decay is kept off vectors (biases, norms), as in Loshchilov & Hutter's and all later practice. Scales:
    ``head_learning_rate`` for the head; ``layer_decay`` ** (layers above) for the others (Howard & Ruder 2018,
    ULMFiT, section 3.2); ``lora_plus_ratio`` for LoRA's B matrices (Hayou et al. 2024, "LoRA+").
    """
    train = recipe.train
    by_place = train.head_learning_rate is not None or train.layer_decay is not None
    network: Any = model.sequence_classifier if by_place else model
    backbone = {id(p) for p in (network.base_model if by_place else model).parameters()}
    depth = network.config.get_text_config().num_hidden_layers if by_place else 0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        if id(parameter) not in backbone:
            scale = (train.head_learning_rate or train.learning_rate) / train.learning_rate
        elif train.layer_decay is not None:
            layer = re.search(r"\.(?:layers?|h|blocks?)\.(\d+)\.", name)
            # Embeddings lie below the first layer; the last norm above the last.
            below = -1 if "embed" in name or "wte" in name else depth - 1
            scale = train.layer_decay ** (depth - 1 - (int(layer[1]) if layer else below))
        if train.lora_plus_ratio is not None and ".lora_B." in name:
            scale *= train.lora_plus_ratio
        decay = train.weight_decay if parameter.dim() >= 2 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": group, "weight_decay": decay, "scale": scale} for (scale, decay), group in groups.items()]


def _why_no_8bit(device: torch.device) -> str | None:
    """None when one 8-bit step works on ``device``, else what went wrong."""
    try:
        # 8-bit state begins at 4,096 elements; a smaller probe would prove nothing.
        weight = nn.Parameter(torch.zeros(64, 128, device=device))
        weight.grad = torch.ones_like(weight)
        importlib.import_module("bitsandbytes.optim").AdamW8bit([weight], lr=1e-3).step()
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
    """Use ``rate`` from the next step on, each group its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def optimizer_name(optimizer: Any) -> str:
    """For logs: the class and where it comes from."""
    inner = torch_optimizer(optimizer)
    module = inspect.getmodule(type(inner))
    return f"{type(inner).__name__} ({module.__name__.split('.')[0] if module else 'unknown'})"
