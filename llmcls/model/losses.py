"""Losses, one float32 number per sample, so that the training loop can weight samples independently of micro-batches.

Evaluation always reports plain cross-entropy, so that runs with different losses can be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from llmcls.recipe.schema import TrainSection

# (logits [batch, labels], targets) -> float32 [batch]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(
    problem_type: str,
    train: TrainSection | None = None,
    weight: torch.Tensor | None = None,
) -> Loss:
    """Build the loss of a recipe.

    Parameters
    ----------
    problem_type : str
        ``model.problem_type`` of the recipe.
    train : TrainSection, optional
        Loss, weights and label smoothing. None means plain cross-entropy.
    weight : float32 [labels], optional
        From `llmcls.model.label_weights`, on the device of the logits.

    Returns
    -------
    Loss
        A function of logits, float [batch, labels], and targets: 0/1 or probabilities, float32 [batch, labels], for
        multi-label problems; otherwise class numbers, int64 [batch], or probabilities that sum to 1, float32 [batch,
        labels]. It returns float32 [batch]. Multi-label losses are means over labels.

    Notes
    -----
    Multi-label targets are smoothed as in Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7, for
    two classes per label.

    Examples
    --------
    >>> loss = build_loss("multi_label_classification")
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([0.6931])
    """
    multi_label = problem_type == "multi_label_classification"
    if train is None:
        return binary_cross_entropy if multi_label else cross_entropy
    smoothing = train.label_smoothing

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not multi_label:
            gamma = train.focal_gamma if train.loss == "focal" else 0.0
            return cross_entropy(logits, targets, weight, smoothing, gamma)
        if smoothing:
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
    """Binary cross-entropy, computed from logits so that it does not overflow.

    Parameters
    ----------
    logits : float [batch, labels]
    targets : float32 [batch, labels]
    pos_weight : float32 [labels], optional
        Factor w on the positives of each label.

    Returns
    -------
    float32 [batch]
        Mean over labels of -w t log s(x) - (1 - t) log(1 - s(x)), where s is the sigmoid.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none", pos_weight=pos_weight).mean(-1)


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor | None = None, smoothing: float = 0.0,
    gamma: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Cross-entropy over classes, optionally weighted, smoothed and focal.

    Parameters
    ----------
    logits : float [batch, classes]
    targets : int64 [batch] or float32 [batch, classes]
        Class numbers, or probabilities.
    weight : float32 [classes], optional
        Factor w on each class.
    smoothing : float
        Label smoothing as in Szegedy et al. 2016.
    gamma : float
        Exponent of the focal factor; 0 for probabilities.

    Returns
    -------
    float32 [batch]
        -(1 - p_t)^gamma w_t log p_t with p = softmax(x). With smoothing e over C classes, w_t log p_t becomes
        (1 - e) w_t log p_t + e / C sum_c w_c log p_c, as in torch; for probabilities t it is sum_c t_c w_c log p_c.
    """
    losses = F.cross_entropy(logits.float(), targets, weight, reduction="none", label_smoothing=smoothing)
    if gamma:
        p_t = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0].exp()
        losses = losses * _power(1 - p_t, gamma)
    return losses


def focal(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Focal loss for multi-label targets, which may be smoothed or probabilities.

    Parameters
    ----------
    logits : float [batch, labels]
    targets : float32 [batch, labels]
    gamma : float
        Exponent; 0 gives `binary_cross_entropy`.
    pos_weight : float32 [labels], optional
        Factor on the positives of each label.

    Returns
    -------
    float32 [batch]
        Mean over labels of -(1 - p_t)^gamma log p_t.

    Notes
    -----
    Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 4. For targets between 0 and 1 the factor is
    |t - p|^gamma, as in Li et al. 2020, "Generalized Focal Loss", equation 5. It is the same for t = 0 and t = 1.
    """
    x = logits.float()
    losses = F.binary_cross_entropy_with_logits(x, targets, reduction="none", pos_weight=pos_weight)
    return (_power((targets - x.sigmoid()).abs(), gamma) * losses).mean(-1)


def asymmetric(
    logits: torch.Tensor, targets: torch.Tensor, gamma_positive: float, gamma_negative: float, clip: float,
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Asymmetric loss: easy negatives count little, and negatives with a probability below ``clip`` do not count.

    Parameters
    ----------
    logits : float [batch, labels]
    targets : float32 [batch, labels]
    gamma_positive, gamma_negative : float
        Exponents g+ and g- for positives and negatives.
    clip : float
        Subtracted from the probability of negatives.
    pos_weight : float32 [labels], optional
        Factor on the positives of each label.

    Returns
    -------
    float32 [batch]
        Mean over labels of -t (1 - p)^g+ log p - (1 - t) q^g- log(1 - q), with q = max(p - clip, 0).

    Notes
    -----
    Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification", equations 4 to 7.
    """
    x = logits.float()
    p = x.sigmoid()
    shifted = (p - clip).clamp(min=0)
    # Without a clip, 1 - p would be rounded to 0 for large logits, and its logarithm would be infinite.
    log_not = torch.log(1 - shifted) if clip else F.logsigmoid(-x)
    positive = targets * _power(1 - p, gamma_positive) * F.logsigmoid(x)
    if pos_weight is not None:
        positive = positive * pos_weight
    return -(positive + (1 - targets) * _power(shifted, gamma_negative) * log_not).mean(-1)


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor:
    """``base ** exponent`` with a finite gradient."""
    # At 0, a power below 1 has an infinite slope, and infinity times zero is nan.
    return torch.ones_like(base) if exponent == 0 else base.clamp(min=1e-12) ** exponent
