from __future__ import annotations

import numpy as np
import pytest
import torch

from llmcls.model.blocked_attention import BLOCK, SCORES, blocked_attention, cut
from llmcls.model.packed_attention import Pack, attention, make_pack

CPU = torch.device("cpu")
# Long and short ones, each a block of its own or several; and neighbours that are one block.
UNLIKE, ALIKE = [5, 1, BLOCK + 40, 2], [BLOCK + 3, 30, 30, 28, 25, 9, 1, 1, 2]


@pytest.mark.parametrize("lengths", [UNLIKE, ALIKE])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_states_and_gradients_are_those_of_float32_attention(key_heads: int, causal: bool, lengths: list[int]) -> None:
    tokens, generator = sum(lengths), torch.Generator().manual_seed(0)
    shapes = [(1, 4, tokens, 8), (1, key_heads, tokens, 8), (1, key_heads, tokens, 8)]
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    d_out = torch.randn(1, tokens, 4, 8, generator=generator)
    results = []
    for blocked in (True, False):
        leaves, pack = [x.clone().requires_grad_() for x in inputs], make_pack(lengths, CPU, causal)
        out = blocked_attention(*leaves, pack, 0.4, compiled=False) if blocked else attention(*leaves, pack, 0.4)
        out.backward(d_out.to(out.dtype))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype == torch.bfloat16
        # Each token by itself, so that no small text hides behind a large one.
        difference = (found.float() - expected.float()).abs().amax((0, 3)) / expected.float().abs().max()
        assert float(difference.max()) < 2e-2


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths, changed", [(UNLIKE, 2), (ALIKE, 3)])
def test_another_text_changes_no_bit(lengths: list[int], changed: int, causal: bool) -> None:
    tokens, start = sum(lengths), sum(lengths[:changed])
    inside = torch.zeros(tokens, dtype=torch.bool)
    inside[start : start + lengths[changed]] = True
    query, key, value = (torch.randn(1, 2, tokens, 8).bfloat16() for _ in range(3))
    others = [torch.where(inside[:, None], 7.0, x) for x in (query, key, value)]
    pack = make_pack(lengths, CPU, causal)
    before, after = (blocked_attention(*inputs, pack, None, False) for inputs in ((query, key, value), others))
    assert torch.equal(before[:, ~inside], after[:, ~inside])
    assert not torch.equal(before[:, inside], after[:, inside])


def test_short_texts_of_similar_lengths_share_a_block() -> None:
    assert [block.texts for block in cut(make_pack(ALIKE, CPU), 4, 2, torch.bfloat16)] == [1, 1, 4, 1, 2, 1]
    many = cut(make_pack([64] * 100, CPU), 4, 2, torch.bfloat16)
    assert [block.texts for block in many] == [SCORES // 64**2] * 6 + [4]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_in_one_block_with_all_tokens_that_it_may_see(seed: int, causal: bool) -> None:
    lengths = np.sort(np.random.default_rng(seed).integers(1, 300, 40))[::-1].tolist()
    pack = make_pack(lengths, CPU, causal)
    seen = torch.zeros(sum(lengths), sum(lengths), dtype=torch.int64)
    for block in cut(pack, 2, 1, torch.bfloat16):
        mask = torch.zeros(block.texts, block.rows.stop - block.rows.start, block.seen.stop - block.seen.start)
        if block.padding is None:
            if block.bias is not None:
                mask[..., -block.bias.shape[-1] :] += block.bias
            seen[block.rows, block.seen] += mask[0] == 0
            continue
        assert block.bias is not None
        tokens = block.padding.keys.view(block.texts, -1)
        real = torch.zeros(tokens.numel(), dtype=torch.bool)
        real[block.padding.key_places] = True
        allowed = block.bias.expand(block.texts, 1, tokens.shape[1], tokens.shape[1])[:, 0] == 0
        text, row, column = (allowed & real.view(block.texts, -1, 1)).nonzero().unbind(1)
        seen.index_put_((tokens[text, row], tokens[text, column]), torch.tensor(1), accumulate=True)
    same = torch.block_diag(*(torch.ones(n, n, dtype=torch.int64) for n in lengths))
    assert torch.equal(seen, same.tril() if causal else same)


def test_blocks_are_cut_once_for_all_layers() -> None:
    pack: Pack = make_pack(ALIKE, CPU)
    query, key = torch.randn(1, 4, sum(ALIKE), 8).bfloat16(), torch.randn(1, 2, sum(ALIKE), 8).bfloat16()
    blocked_attention(query, key, key, pack, None, False)
    first = next(iter(pack.blocks.values()))
    blocked_attention(query, key, key, pack, None, False)
    assert list(pack.blocks.values()) == [first]
    assert next(iter(pack.blocks.values())) is first
