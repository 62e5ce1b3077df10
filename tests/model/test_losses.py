from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from llmcls.model.label_weights import mean_weight
from llmcls.model.losses import asymmetric, build_loss, cross_entropy, focal
from llmcls.recipe.schema import TrainSection

LOGITS = torch.tensor([[0.3, -1.2, 2.5], [2.0, 0.0, -0.7]])
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
MULTI, SINGLE = "multi_label_classification", "single_label_classification"


def test_multi_label_loss_is_the_mean_over_labels_per_sample() -> None:
    logits, targets = torch.tensor([[0.3, -1.2], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    s = torch.sigmoid(logits)
    expected = -(targets * s.log() + (1 - targets) * (1 - s).log()).mean(1)
    assert torch.allclose(build_loss("multi_label_classification")(logits, targets), expected)


def test_class_loss_is_the_negative_log_softmax() -> None:
    loss = build_loss("binary_classification")(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1]))
    assert loss.tolist() == pytest.approx([-math.log(0.75)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4]], dtype=dtype, requires_grad=True)
    loss = build_loss("multi_label_classification")(logits, torch.tensor([[0.0, 1.0]]))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_is_the_papers(gamma: float) -> None:
    p = LOGITS.sigmoid()
    p_t = torch.where(TARGETS == 1, p, 1 - p)
    assert torch.allclose(focal(LOGITS, TARGETS, gamma), (-((1 - p_t) ** gamma) * p_t.log()).mean(1), atol=1e-6)
    p_y = LOGITS.softmax(1)[torch.arange(2), torch.tensor([2, 0])]
    found = cross_entropy(LOGITS, torch.tensor([2, 0]), gamma=gamma)
    assert torch.allclose(found, -((1 - p_y) ** gamma) * p_y.log(), atol=1e-6)


@pytest.mark.parametrize(
    ("plus", "minus", "clip"), [(0.0, 4.0, 0.05), (1.0, 4.0, 0.0), (0.5, 0.5, 0.2), (0.0, 0.0, 0.0)]
)
def test_asymmetric_loss_is_the_papers(plus: float, minus: float, clip: float) -> None:
    p = LOGITS.sigmoid()
    q = (p - clip).clamp(min=0)
    expected = -(TARGETS * (1 - p) ** plus * p.log() + (1 - TARGETS) * q**minus * (1 - q).log()).mean(1)
    assert torch.allclose(asymmetric(LOGITS, TARGETS, plus, minus, clip), expected, atol=1e-6)


def test_without_focus_both_are_plain_cross_entropy() -> None:
    plain = build_loss(MULTI)(LOGITS, TARGETS)
    assert torch.allclose(focal(LOGITS, TARGETS, 0.0), plain)
    assert torch.allclose(asymmetric(LOGITS, TARGETS, 0.0, 0.0, 0.0), plain, atol=1e-6)


@pytest.mark.parametrize("kind", ["focal", "asymmetric"])
@pytest.mark.parametrize("size", [30.0, 200.0])
def test_sure_logits_give_finite_gradients(kind: str, size: float) -> None:
    for gamma in (0.0, 0.5, 2.0):
        train = TrainSection(
            loss=kind, focal_gamma=gamma, asymmetric_gamma_positive=gamma, asymmetric_gamma_negative=gamma
        )
        logits = torch.tensor([[size, -size, size, -size]], requires_grad=True)
        loss = build_loss(MULTI, train)(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(logits.grad).all()


def test_pos_weight_is_torchs() -> None:
    weight = torch.tensor([1.0, 9.0, 0.5])
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGETS, pos_weight=weight, reduction="none").mean(1)
    assert torch.allclose(build_loss(MULTI, TrainSection(), weight)(LOGITS, TARGETS), expected)


def test_class_weights_are_torchs_also_with_smoothing_and_focus() -> None:
    weight, target = torch.tensor([0.5, 2.0, 3.0]), torch.tensor([2, 0])
    loss = build_loss(SINGLE, TrainSection(label_smoothing=0.1), weight)(LOGITS, target)
    spread = F.one_hot(target, 3) * 0.9 + 0.1 / 3
    assert torch.allclose(loss, -(spread * weight * LOGITS.log_softmax(1)).sum(1))
    # The loop divides by the mean weight of the rows of a step.
    mean = F.cross_entropy(LOGITS, target, weight, label_smoothing=0.1)
    assert torch.allclose(loss.mean() / mean_weight(target.numpy(), weight), mean)
    focal_loss = build_loss(SINGLE, TrainSection(loss="focal"), weight)(LOGITS, target)
    assert torch.allclose(focal_loss, cross_entropy(LOGITS, target, gamma=2.0) * weight[target])


def test_label_smoothing_is_the_papers() -> None:
    train = TrainSection(label_smoothing=0.1)
    smoothed = build_loss(MULTI)(LOGITS, TARGETS * 0.9 + 0.05)
    assert torch.allclose(build_loss(MULTI, train)(LOGITS, TARGETS), smoothed)
    target = torch.tensor([2, 0])
    spread = F.one_hot(target, 3) * 0.9 + 0.1 / 3
    assert torch.allclose(build_loss(SINGLE, train)(LOGITS, target), -(spread * LOGITS.log_softmax(1)).sum(1))


SOFT = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.6, 0.35]])


def test_losses_of_probabilities_are_their_formulas() -> None:
    weight, p = torch.tensor([0.5, 2.0, 3.0]), LOGITS.sigmoid()
    binary = -(weight * SOFT * p.log() + (1 - SOFT) * (1 - p).log())
    assert torch.allclose(build_loss(MULTI, TrainSection(), weight)(LOGITS, SOFT), binary.mean(1))
    # Li et al. 2020, equation 5: no loss where the model gives the probability itself.
    assert torch.allclose(focal(LOGITS, SOFT, 2.0, weight), ((SOFT - p) ** 2 * binary).mean(1))
    assert focal(SOFT.logit(), SOFT, 2.0).abs().max() < 1e-9
    classes = build_loss(SINGLE, TrainSection(), weight)(LOGITS, SOFT)
    assert torch.allclose(classes, -(weight * SOFT * LOGITS.log_softmax(1)).sum(1))
    assert torch.allclose(classes, F.cross_entropy(LOGITS, SOFT, weight, reduction="none"))


def test_probabilities_of_0_and_1_are_labels() -> None:
    train, weight, target = TrainSection(label_smoothing=0.1), torch.tensor([0.5, 2.0, 3.0]), torch.tensor([2, 0])
    hard, sure = build_loss(SINGLE, train, weight), F.one_hot(target, 3).float()
    assert torch.allclose(hard(LOGITS, target), hard(LOGITS, sure))
    assert mean_weight(sure.numpy(), weight) == mean_weight(target.numpy(), weight) == 1.75
