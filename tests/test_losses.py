from __future__ import annotations

import math

import pytest
import torch

from llmcls.losses import build_loss


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
