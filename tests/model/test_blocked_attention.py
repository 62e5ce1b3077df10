from __future__ import annotations

import numpy as np
import pytest
import torch

from llmcls.model.blocked_attention import BLOCK, KEPT, SCORES, blocked_attention, cut
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


@pytest.mark.parametrize("lengths", [UNLIKE, ALIKE])
@pytest.mark.parametrize("causal", [True, False])
def test_nothing_is_read_before_it_is_written(
    causal: bool, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = [torch.randn(1, 2, sum(lengths), 8).bfloat16().requires_grad_() for _ in range(3)]
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: empty(x).fill_(torch.nan))
    out = blocked_attention(*leaves, make_pack(lengths, CPU, causal), None, False)
    out.backward(torch.ones_like(out))
    assert all(bool(x.isfinite().all()) for x in (out, *(leaf.grad for leaf in leaves)))


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
    found = cut(make_pack(ALIKE, CPU), 4, 2, torch.bfloat16)
    assert [block.texts for block in found.blocks] == [1, 1, 4, 1, 2, 1]
    many = cut(make_pack([64] * 100, CPU), 4, 2, torch.bfloat16)
    assert [block.texts for block in many.blocks] == [SCORES // 64**2] * 6 + [4]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_in_one_block_with_all_tokens_that_it_may_see(seed: int, causal: bool) -> None:
    lengths = np.sort(np.random.default_rng(seed).integers(1, 300, 40))[::-1].tolist()
    tokens, heads, key_heads = sum(lengths), 4, 2
    found = cut(make_pack(lengths, CPU, causal), heads, key_heads, torch.bfloat16)
    seen = torch.zeros(heads, tokens, tokens, dtype=torch.int64)
    real = torch.ones(len(found.query_rows), dtype=torch.bool)
    real[found.behind] = False
    for block in found.blocks:
        row = found.query_rows[block.queries].view(block.texts, heads, block.rows, 1)
        key_row = found.key_rows[block.keys].view(block.texts, key_heads, 1, -1)[..., : block.seen]
        key_row = key_row.repeat_interleave(heads // key_heads, 1)
        mask = torch.zeros(block.texts, heads, block.rows, block.seen)
        if block.bias is not None:
            mask[..., -block.bias.shape[-1] :] += block.bias
        places = (row % heads, row // heads, key_row // key_heads)
        assert torch.equal((key_row % key_heads).expand(mask.shape), (row % heads // 2).expand(mask.shape))
        met = (mask == 0) & real[block.queries].view(row.shape)
        seen.index_put_([p.expand(met.shape)[met] for p in places], torch.tensor(1), accumulate=True)
    same = torch.block_diag(*(torch.ones(n, n, dtype=torch.int64) for n in lengths))
    assert torch.equal(seen, (same.tril() if causal else same).expand(seen.shape))


@pytest.mark.parametrize("seed", range(3))
def test_each_row_has_its_place(seed: int) -> None:
    lengths = np.sort(np.random.default_rng(seed).integers(1, 300, 40))[::-1].tolist()
    found = cut(make_pack(lengths, CPU), 4, 2, torch.bfloat16)
    for rows, places, heads in ((found.query_rows, found.query_places, 4), (found.key_rows, found.key_places, 2)):
        assert rows[places].tolist() == list(range(heads * sum(lengths)))
    assert not set(found.query_places.tolist()) & set(found.behind.tolist())


def test_weights_of_many_keys_are_not_kept_and_the_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(1, 4, sum(UNLIKE), 8).bfloat16(), torch.randn(1, 2, sum(UNLIKE), 8).bfloat16()
    gradients, kept = [], []
    for limit in (KEPT, 4):
        monkeypatch.setattr("llmcls.model.blocked_attention.KEPT", limit)
        leaves = [x.clone().requires_grad_() for x in (query, key, key)]
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            out = blocked_attention(*leaves, make_pack(UNLIKE, CPU), None, False)
        out.float().square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
        kept.append(sum(sizes) - query.numel() - 2 * key.numel())
    # Of the text of two blocks, the first 128 queries see as many keys, and 40 see all 168.
    assert kept == [4 * (5**2 + 1 + 128**2 + 40 * 168 + 2**2), 4 * (1 + 2**2)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_blocks_are_cut_once_for_all_layers() -> None:
    pack: Pack = make_pack(ALIKE, CPU)
    query, key = torch.randn(1, 4, sum(ALIKE), 8).bfloat16(), torch.randn(1, 2, sum(ALIKE), 8).bfloat16()
    blocked_attention(query, key, key, pack, None, False)
    first = next(iter(pack.blocks.values()))
    blocked_attention(query, key, key, pack, None, False)
    assert list(pack.blocks.values()) == [first]
    assert next(iter(pack.blocks.values())) is first
