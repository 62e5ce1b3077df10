"""What each rank holds of a model and its optimizer, and the proof that a sharded engine shards."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from llmcls.engine.accelerator import engine_name, shards_state, unwrapped, zero_stage


def check_shards(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> dict[str, int]:
    """Count what this rank holds, and check that a sharded engine shards. Call it after the first optimizer step.

    Returns
    -------
    Elements on this rank and in total, as stored: ``{"weights", "weights_total", "optimizer_state",
    "optimizer_state_total"}``. The optimizer state is AdamW's first moment of the trained parameters.

    Raises
    ------
    RuntimeError
        If FSDP or ZeRO left a whole copy on every rank.
    """
    sizes = {"weights": 0, "weights_total": 0, "optimizer_state": 0, "optimizer_state_total": 0}
    for parameter in unwrapped(model).parameters():
        # ZeRO-3 leaves an empty tensor and keeps the rank's part beside it; FSDP2 makes a DTensor.
        total = getattr(parameter, "ds_numel", parameter.numel())
        part = getattr(parameter, "ds_tensor", None)
        sizes["weights"] += _local(parameter) if part is None else part.numel()
        sizes["weights_total"] += total
        sizes["optimizer_state_total"] += total if parameter.requires_grad else 0
    for state in torch_optimizer(optimizer).state.values():
        sizes["optimizer_state"] += _local(state.get("exp_avg", state.get("state1")))
    sharded = "weights" if zero_stage(accelerator) in (None, 3) else "optimizer_state"
    if accelerator.num_processes > 1 and shards_state(accelerator) and sizes[sharded] >= sizes[f"{sharded}_total"]:
        raise RuntimeError(f"{engine_name(accelerator)} was asked for, but every rank holds all {sharded}: {sizes}")
    return sizes


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The innermost optimizer, inside accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _local(tensor: Any) -> int:
    return int((tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel())
