"""The optimizer, its parameter groups, and the learning-rate schedule."""

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
from llmcls.recipe.defaults import wants_8bit_optimizer
from llmcls.recipe.schema import Recipe

log = logging.getLogger(__name__)


def build_optimizer(
    model: nn.Module, recipe: Recipe, device: torch.device, sharded: bool = False
) -> torch.optim.Optimizer:
    """Build AdamW over the trained parameters.

    For a 4-bit model that trains many weights, 8-bit AdamW is used if the recipe allows it and the device supports it.
    Otherwise it is the fused AdamW of torch, which updates many small tensors, such as those of an adapter, at once.

    Parameters
    ----------
    model : nn.Module
    recipe : Recipe
    device : torch.device
    sharded : bool
        Whether each rank holds a shard of every parameter (FSDP, DeepSpeed). The 8-bit kernel does not support sharded
        tensors, and the optimizer state of a shard is small in any case.

    Returns
    -------
    torch.optim.Optimizer
    """
    groups = parameter_groups(model, recipe)
    rate = recipe.train.learning_rate
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if wants_8bit_optimizer(recipe, trained):
        reason = "the engine shards the optimizer state" if sharded else _why_no_8bit(device)
        if reason is None:
            return importlib.import_module("bitsandbytes.optim").AdamW8bit(groups, lr=rate)
        log.warning("8-bit AdamW is not available on %s (%s); using AdamW of torch", device.type, reason)
    return torch.optim.AdamW(groups, lr=rate, fused=device.type in ("cpu", "cuda"))


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group the trained parameters by weight decay and by learning rate.

    Parameters
    ----------
    model : nn.Module
        A `Classifier` if the recipe sets ``head_learning_rate`` or ``layer_decay``.
    recipe : Recipe

    Returns
    -------
    list of dict
        The groups for the optimizer, each with "params", "weight_decay" and "scale", the factor on the learning rate.

    Notes
    -----
    Vectors (biases, norms) have no weight decay, as in Loshchilov & Hutter and in all later practice. The scale is
    ``head_learning_rate`` / ``learning_rate`` for the head, and ``layer_decay`` ** (number of layers above) for the
    other parameters (Howard & Ruder 2018, ULMFiT, section 3.2). For the B matrices of LoRA it is multiplied by
    ``lora_plus_ratio`` (Hayou et al. 2024, "LoRA+").
    """
    train = recipe.train
    by_depth = train.head_learning_rate is not None or train.layer_decay is not None
    network: Any = model.sequence_classifier if by_depth else model
    backbone = {id(p) for p in (network.base_model if by_depth else model).parameters()}
    depth = network.config.get_text_config().num_hidden_layers if by_depth else 0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        if id(parameter) not in backbone:
            scale = (train.head_learning_rate or train.learning_rate) / train.learning_rate
        elif train.layer_decay is not None:
            layer = re.search(r"\.(?:layers?|h|blocks?)\.(\d+)\.", name)
            # Embeddings count as one layer below the first, other parameters outside the layers as part of the last.
            outside = -1 if "embed" in name or "wte" in name else depth - 1
            scale = train.layer_decay ** (depth - 1 - (int(layer[1]) if layer else outside))
        if train.lora_plus_ratio is not None and ".lora_B." in name:
            scale *= train.lora_plus_ratio
        decay = train.weight_decay if parameter.dim() >= 2 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": group, "weight_decay": decay, "scale": scale} for (scale, decay), group in groups.items()]


def _why_no_8bit(device: torch.device) -> str | None:
    """Try one step of 8-bit AdamW on ``device``; returns None if it works, otherwise the reason why not."""
    try:
        # bitsandbytes stores the state in 8 bits from 4,096 elements on, so the trial must be at least that large.
        weight = nn.Parameter(torch.zeros(64, 128, device=device))
        weight.grad = torch.ones_like(weight)
        importlib.import_module("bitsandbytes.optim").AdamW8bit([weight], lr=1e-3).step()
    except (ImportError, RuntimeError, NotImplementedError, AttributeError, KeyError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None if bool((weight < 0).all()) else "its step does not change the weights"


def learning_rate_factor(step: int, total: int, warmup_ratio: float, kind: str) -> float:
    """The factor on the peak learning rate at an optimizer step.

    The factor depends only on the step, so a resumed run needs no state of a scheduler.

    Parameters
    ----------
    step : int
        Number of the step, from 0.
    total : int
        Steps of the whole run.
    warmup_ratio : float
        Share of the steps with a linear warm-up.
    kind : str
        "cosine" (Loshchilov & Hutter 2017, SGDR, without restarts), "linear" or "constant": the schedule after the
        warm-up.

    Returns
    -------
    float

    Examples
    --------
    >>> [learning_rate_factor(step, 4, 0.5, "linear") for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of each parameter group to ``rate`` times the scale of the group.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer, or a wrapper of one
    rate : float
        The learning rate for a scale of 1.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def optimizer_name(optimizer: Any) -> str:
    """The class of the innermost optimizer and its library, for logs.

    Examples
    --------
    >>> optimizer_name(torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))
    'AdamW (torch)'
    """
    inner = torch_optimizer(optimizer)
    module = inspect.getmodule(type(inner))
    return f"{type(inner).__name__} ({module.__name__.split('.')[0] if module else 'unknown'})"
