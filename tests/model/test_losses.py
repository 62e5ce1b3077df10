from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmcls.model.losses import asymmetric, balanced_class_weight, balanced_pos_weight, build_loss, cross_entropy, focal
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


def test_pos_weight_is_torchs_and_capped() -> None:
    positives, rows = np.array([50, 10, 1]), 100
    weight = balanced_pos_weight(positives, rows, cap=10.0)
    assert weight.tolist() == pytest.approx([1.0, 9.0, 10.0])
    loss = build_loss(MULTI, TrainSection(pos_weight="balanced"), positives, rows)(LOGITS, TARGETS)
    expected = F.binary_cross_entropy_with_logits(
        LOGITS, TARGETS, pos_weight=torch.from_numpy(weight), reduction="none"
    )
    assert torch.allclose(loss, expected.mean(1))


def test_class_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    values = np.array([0] * 60 + [1] * 30 + [2] * 10)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=values)
    assert balanced_class_weight(np.bincount(values), 100, 10.0) == pytest.approx(expected)
    loss = build_loss(SINGLE, TrainSection(pos_weight="balanced"), np.bincount(values), 100)
    plain = build_loss(SINGLE)(LOGITS, torch.tensor([2, 0]))
    assert torch.allclose(loss(LOGITS, torch.tensor([2, 0])), plain * torch.tensor(expected[[2, 0]]).float())


def test_label_smoothing_is_the_papers() -> None:
    train = TrainSection(label_smoothing=0.1)
    smoothed = build_loss(MULTI)(LOGITS, TARGETS * 0.9 + 0.05)
    assert torch.allclose(build_loss(MULTI, train)(LOGITS, TARGETS), smoothed)
    target = torch.tensor([2, 0])
    spread = F.one_hot(target, 3) * 0.9 + 0.1 / 3
    assert torch.allclose(build_loss(SINGLE, train)(LOGITS, target), -(spread * LOGITS.log_softmax(1)).sum(1))
