"""Losses: one number per sample, in float32, so that any micro-batching can weight them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from llmcls.recipe import Recipe


@dataclass(frozen=True)
class LossSpec:
    """name: "bce" or "cross_entropy"."""

    name: str


def loss_of(recipe: Recipe) -> LossSpec:
    """Binary cross-entropy for multi-label, cross-entropy for classes."""
    return LossSpec("bce" if recipe.model.problem_type == "multi_label_classification" else "cross_entropy")


def build_loss(spec: LossSpec, problem_type: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function (logits [batch, labels], targets) -> loss per sample, float32 [batch]."""
    if spec.name == "bce":
        return lambda logits, targets: F.binary_cross_entropy_with_logits(
            logits.float(), targets, reduction="none"
        ).mean(-1)
    return lambda logits, targets: F.cross_entropy(logits.float(), targets, reduction="none")
