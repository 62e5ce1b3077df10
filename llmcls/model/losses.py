"""Losses: one number per sample, in float32, so that the loop can weight samples whatever their micro-batch.

Evaluation always reports plain cross-entropy, so that runs with different losses compare.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from llmcls.recipe.schema import TrainSection

# (logits [batch, labels], targets) -> float32 [batch]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(
    problem_type: str,
    train: TrainSection | None = None,
    positives: np.ndarray | None = None,
    rows: int = 0,
    device: torch.device | None = None,
) -> Loss:
    """The loss of a recipe; without ``train``, plain cross-entropy.

    Targets are float32 [batch, labels] of 0/1 for multi-label (the loss is a mean over labels), int64 [batch] of
    class numbers else.

    Parameters
    ----------
    positives: int [labels], training rows of each label; needed for ``pos_weight: balanced``. rows: of training.
    device: where the logits will be.
    """
    multi_label = problem_type == "multi_label_classification"
    if train is None:
        return binary_cross_entropy if multi_label else cross_entropy
    weight = None
    if train.pos_weight == "balanced":
        if positives is None:
            raise ValueError("pos_weight needs the labels' counts")
        make = balanced_pos_weight if multi_label else balanced_class_weight
        weight = torch.from_numpy(make(positives, rows, train.pos_weight_cap)).to(device)
    smoothing = train.label_smoothing

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not multi_label:
            gamma = train.focal_gamma if train.loss == "focal" else 0.0
            return cross_entropy(logits, targets, weight, smoothing, gamma)
        if smoothing:
            # Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7, for two classes a label.
            targets = targets * (1 - smoothing) + smoothing / 2
        if train.loss == "focal":
            return focal(logits, targets, train.focal_gamma, weight)
        if train.loss == "asymmetric":
            gammas = (train.asymmetric_gamma_positive, train.asymmetric_gamma_negative)
            return asymmetric(logits, targets, *gammas, train.asymmetric_clip, weight)
        return binary_cross_entropy(logits, targets, weight)

    return loss


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """float32 [batch]: mean over labels of -w t log s(x) - (1 - t) log(1 - s(x)), from logits, so without overflow."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none", pos_weight=pos_weight).mean(-1)


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor | None = None, smoothing: float = 0.0,
    gamma: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """float32 [batch]: -w_t (1 - p_t)^gamma log p_t with p = softmax(x); smoothed as Szegedy et al. 2016."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)
    if gamma:
        chance = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0].exp()
        losses = losses * _power(1 - chance, gamma)
    return losses if weight is None else losses * weight[targets]


def focal(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """float32 [batch]: mean over labels of -(1 - p_t)^gamma log p_t.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 4; for smoothed targets |t - p|^gamma, as Li et
    al. 2020, "Generalized Focal Loss", equation 5, which is the same for t of 0 and 1.
    """
    x = logits.float()
    losses = F.binary_cross_entropy_with_logits(x, targets, reduction="none", pos_weight=pos_weight)
    return (_power((targets - x.sigmoid()).abs(), gamma) * losses).mean(-1)


def asymmetric(
    logits: torch.Tensor, targets: torch.Tensor, gamma_positive: float, gamma_negative: float, clip: float,
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """float32 [batch]: mean over labels of -t (1 - p)^g+ log p - (1 - t) q^g- log(1 - q), with q = max(p - clip, 0).

    Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification", equations 4 to 7. Negatives below ``clip``
    cost nothing, and easy ones little.
    """
    x = logits.float()
    p = x.sigmoid()
    shifted = (p - clip).clamp(min=0)
    # Without a clip, 1 - p would be rounded to nothing for large logits.
    log_not = torch.log(1 - shifted) if clip else F.logsigmoid(-x)
    positive = targets * _power(1 - p, gamma_positive) * F.logsigmoid(x)
    if pos_weight is not None:
        positive = positive * pos_weight
    return -(positive + (1 - targets) * _power(shifted, gamma_negative) * log_not).mean(-1)


def balanced_pos_weight(positives: np.ndarray, rows: int, cap: float) -> np.ndarray:
    """float32 [labels]: negatives by positives of each label, as `BCEWithLogitsLoss` advises, at most ``cap``."""
    positives = np.maximum(positives, 1)
    return np.minimum((rows - positives) / positives, cap).astype(np.float32)


def balanced_class_weight(counts: np.ndarray, rows: int, cap: float) -> np.ndarray:
    """float32 [classes]: rows / (classes x count), scikit-learn's "balanced" (King & Zeng 2001), at most ``cap``."""
    return np.minimum(rows / (len(counts) * np.maximum(counts, 1)), cap).astype(np.float32)


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor:
    # At 0 a power below 1 has an infinite slope, and infinity times zero is no number.
    return torch.ones_like(base) if exponent == 0 else base.clamp(min=1e-12) ** exponent
