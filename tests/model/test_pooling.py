from __future__ import annotations

import pytest
import torch
from torch import nn

from llmcls.model.pooling import AttentionHead, pool

LENGTHS = torch.tensor([3, 1, 4])


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def test_last_and_mean_are_those_of_each_text(states: torch.Tensor) -> None:
    texts = states.split(LENGTHS.tolist())
    assert torch.equal(pool(states, LENGTHS, "last", None), torch.stack([t[-1] for t in texts]))
    assert torch.allclose(pool(states, LENGTHS, "mean", None), torch.stack([t.mean(0) for t in texts]), atol=1e-6)


def test_attention_is_a_softmax_within_each_text_and_begins_as_the_mean(states: torch.Tensor) -> None:
    head = AttentionHead(nn.Linear(6, 2))
    assert torch.allclose(pool(states, LENGTHS, "attention", head), pool(states, LENGTHS, "mean", None), atol=1e-6)
    nn.init.normal_(head.attend.weight, std=3.0)
    expected = [(head.attend(t).softmax(0) * t).sum(0) for t in states.split(LENGTHS.tolist())]
    found = pool(states, LENGTHS, "attention", head)
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    found.sum().backward()
    assert torch.isfinite(head.attend.weight.grad).all()
    assert head.attend.weight.grad.abs().max() > 0


def test_a_text_does_not_reach_into_its_neighbour(states: torch.Tensor) -> None:
    head = AttentionHead(nn.Linear(6, 2))
    nn.init.normal_(head.attend.weight)
    for kind in ("last", "mean", "attention"):
        before = pool(states, LENGTHS, kind, head)
        changed = states.clone()
        changed[3] += 100.0
        after = pool(changed, LENGTHS, kind, head)
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert not torch.equal(before[1], after[1])
