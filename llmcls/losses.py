"""Losses: one number per sample, in float32, so that the loop can weight samples whatever their micro-batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# (logits [batch, labels], targets) -> float32 [batch]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(problem_type: str) -> Loss:
    """Binary cross-entropy, mean over labels (multi-label), or cross-entropy (classes).

    Targets are float32 [batch, labels] of 0/1 for the former, int64 [batch] for the latter.
    """
    return binary_cross_entropy if problem_type == "multi_label_classification" else cross_entropy


def binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """float32 [batch]: mean over labels of -t log s(x) - (1 - t) log(1 - s(x)), from logits, so without overflow."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(dim=-1)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """float32 [batch]: -log softmax(x)[t]."""
    return F.cross_entropy(logits.float(), targets, reduction="none")
