from __future__ import annotations

import pytest
import torch

from llmcls.model.blocked_attention import BLOCK, blocked_attention
from llmcls.model.packed_attention import attention, make_pack

LENGTHS = [5, 1, BLOCK + 40, 2]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_states_and_gradients_are_those_of_float32_attention(key_heads: int, causal: bool) -> None:
    tokens, generator = sum(LENGTHS), torch.Generator().manual_seed(0)
    shapes = [(1, 4, tokens, 8), (1, key_heads, tokens, 8), (1, key_heads, tokens, 8)]
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    d_out = torch.randn(1, tokens, 4, 8, generator=generator)
    results = []
    for blocked in (True, False):
        leaves = [x.clone().requires_grad_() for x in inputs]
        if blocked:
            out = blocked_attention(*leaves, LENGTHS, causal, 0.4, compiled=False)
        else:
            out = attention(*leaves, make_pack(LENGTHS, torch.device("cpu"), causal), 0.4)
        out.backward(d_out.to(out.dtype))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype == torch.bfloat16
        difference = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert float(difference) < 2e-2


def test_another_text_changes_no_bit() -> None:
    tokens = sum(LENGTHS)
    query, key, value = (torch.randn(1, 2, tokens, 8).bfloat16() for _ in range(3))
    before = blocked_attention(query, key, value, LENGTHS, True, None, compiled=False)
    changed = value.clone()
    changed[:, :, 6 : 6 + BLOCK + 40] = 7.0
    after = blocked_attention(query, key, changed, LENGTHS, True, None, compiled=False)
    assert torch.equal(before[:, :6], after[:, :6])
    assert torch.equal(before[:, -2:], after[:, -2:])
    assert not torch.equal(before, after)
