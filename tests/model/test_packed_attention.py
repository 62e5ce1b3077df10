from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from packaging.version import Version

from llmcls.model import packed_attention
from llmcls.model.packed_attention import HeadShape, attention, choose_kernel, make_pack
from llmcls.model.stand_in import DeviceKind
from tests.helpers import ROOT
from tests.model.helpers import CPU, TEXTS, lengths_of

LENGTHS = lengths_of(TEXTS)
TOKENS = sum(LENGTHS)
TOO_OLD = "_flash_attention_forward() expected at most 9 arguments"


def states(queries: int, key_heads: int = 2, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Random query, key and value of four query heads."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, queries, 8), (1, key_heads, TOKENS, 8), (1, key_heads, TOKENS, 8)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def text_by_text(query, key, value, causal: bool, scaling: float | None) -> torch.Tensor:
    """Attention of each text alone, as torch computes it."""
    outs = []
    for q, k, v in zip(*(tensor.split(LENGTHS, dim=2) for tensor in (query, key, value)), strict=True):
        outs.append(F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling, enable_gqa=True))
    return torch.cat(outs, dim=2).transpose(1, 2)


def test_a_pack_says_where_texts_start_and_end() -> None:
    pack = make_pack([3, 1, 2], CPU)
    assert pack.lengths == [3, 1, 2]
    assert pack.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert pack.last_token_index.tolist() == [2, 3, 5]
    assert pack.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert pack.query_cu_seqlens.tolist() == [0, 1, 2, 3]
    assert pack.cu_seqlens.dtype == torch.int32
    assert pack.causal


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [2, 4], ids=["grouped", "one key per query"])
def test_texts_attend_to_themselves_only(causal: bool, key_heads: int) -> None:
    query, key, value = states(TOKENS, key_heads)
    found = attention(query, key, value, make_pack(LENGTHS, CPU, causal), 0.3)
    assert torch.allclose(found, text_by_text(query, key, value, causal, 0.3), atol=1e-6)


@pytest.mark.parametrize("key_heads", [2, 4], ids=["grouped", "one key per query"])
def test_neighbours_of_the_same_length_share_a_call_and_give_the_same_gradients(monkeypatch, key_heads: int) -> None:
    lengths, calls, real = [4, 3, 3, 3, 1, 1], [], F.scaled_dot_product_attention

    def counted(query, *arguments, **named):
        calls.append(query.shape[0])
        return real(query, *arguments, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    found = {}
    for name in ("shared", "alone"):
        generator = torch.Generator().manual_seed(0)
        tensors = [
            torch.randn(1, sum(lengths), heads, 8, generator=generator).transpose(1, 2).requires_grad_()
            for heads in (4, key_heads, key_heads)
        ]
        packs = [make_pack(lengths, CPU)] if name == "shared" else [make_pack([length], CPU) for length in lengths]
        pieces = [tensor.split([sum(pack.lengths) for pack in packs], dim=2) for tensor in tensors]
        outs = [attention(q, k, v, pack, None) for q, k, v, pack in zip(*pieces, packs, strict=True)]
        last = attention(tensors[0][:, :, [3, 6, 9, 12, 13, 14]], *tensors[1:], make_pack(lengths, CPU), None)
        together = torch.cat([*outs, last], dim=1)
        (together * torch.randn(together.shape, generator=generator)).sum().backward()
        found[name] = [together, *(tensor.grad for tensor in tensors)]
    assert calls[:6] == [1, 3, 2, 1, 3, 2]
    for shared, alone in zip(found["shared"], found["alone"], strict=True):
        assert torch.allclose(shared, alone, atol=1e-6)


def test_one_query_per_text_sees_the_whole_text() -> None:
    query, key, value = states(TOKENS)
    pack = make_pack(LENGTHS, CPU)
    whole = attention(query, key, value, pack, None)[:, pack.last_token_index]
    last = attention(query[:, :, pack.last_token_index], key, value, pack, None)
    assert torch.allclose(last, whole, atol=1e-6)


def test_16_bit_attention_on_a_cpu_keeps_its_type() -> None:
    query, key, value = states(TOKENS, dtype=torch.bfloat16)
    found = attention(query, key, value, make_pack(LENGTHS, CPU), None)
    assert found.dtype == torch.bfloat16
    expected = text_by_text(query.float(), key.float(), value.float(), True, None)
    assert torch.allclose(found.float(), expected, atol=2e-2)


def test_on_a_gpu_the_kernel_gets_tokens_first_and_the_right_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs on GPUs only, so its arguments are checked against a reference that takes the same ones."""

    def reference(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale):
        assert max_k == max(LENGTHS)
        assert max_q == (1 if len(q) == len(LENGTHS) else max_k)
        assert (dropout, debug) == (0.0, False)
        outs = []
        for i in range(len(cu_q) - 1):
            parts = (q[cu_q[i] : cu_q[i + 1]], k[cu_k[i] : cu_k[i + 1]], v[cu_k[i] : cu_k[i + 1]])
            one = F.scaled_dot_product_attention(
                *(part.transpose(0, 1)[None].float() for part in parts), is_causal=causal, scale=scale, enable_gqa=True
            )
            outs.append(one[0].transpose(0, 1))
        nothing = torch.empty(0)
        return torch.cat(outs).to(q.dtype), nothing, nothing, nothing, nothing

    class OnGpu(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda")

    called = []
    monkeypatch.setattr(packed_attention, "FLASH_FORWARD", lambda *a, **k: called.append(a) or reference(*a, **k))
    for queries, causal in ((TOKENS, True), (len(TEXTS), True), (TOKENS, False)):
        plain, pack = (make_pack(LENGTHS, CPU, causal, flash) for flash in (False, True))
        query, key, value = states(queries, dtype=torch.bfloat16)
        expected = attention(query, key, value, plain, 0.3)
        found = attention(query.as_subclass(OnGpu), key, value, pack, 0.3)
        assert found.shape == (1, queries, 4, 8)
        assert torch.allclose(found.as_subclass(torch.Tensor).float(), expected.float(), atol=1e-2)
    assert len(called) == 3
    # Flash attention does not support float32; each text is computed separately.
    found = attention(query.float().as_subclass(OnGpu), key.float(), value.float(), pack, 0.3)
    assert found.shape == (1, TOKENS, 4, 8)
    assert len(called) == 3


def test_the_kernel_is_tried_with_the_widths_of_the_real_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, v, **more: widths.append((q.shape[-1], k.shape[-1], v.shape[-1])) or real(q, k, v, **more),
    )
    # As in DeepSeek-V3: values are narrower than keys.
    kernel, reason = choose_kernel(HeadShape(4, 4, 192, 128), CPU, torch.float32)
    assert (kernel, reason) == ("per text", "flash attention needs a GPU")
    assert set(widths) == {(192, 192, 128)}
    # What stands for a GPU is believed, but flash attention has one width for keys and values.
    assert choose_kernel(HeadShape(4, 4, 192, 128), DeviceKind(), torch.bfloat16)[0] == "per text"
    assert choose_kernel(HeadShape(4, 4, 128, 128), DeviceKind(), torch.bfloat16)[0] == "flash"


@pytest.mark.parametrize(
    "flash_works, per_text_works, expected",
    [
        (True, True, ("flash", "")),
        (False, True, ("per text", f"flash attention does not work here: {TOO_OLD}")),
        (False, False, (None, f"flash attention does not work here: {TOO_OLD}; attention per text: no kernel")),
    ],
)
def test_on_a_gpu_the_fastest_attention_that_runs_is_taken(
    monkeypatch: pytest.MonkeyPatch, flash_works: bool, per_text_works: bool, expected: tuple[str | None, str]
) -> None:
    linspace, make_pack_on = torch.linspace, packed_attention.make_pack

    def fake(query, key, value, pack, scaling, dropout=0.0):
        assert (query.shape[-1], query.dtype) == (100, torch.bfloat16)
        if pack.flash and not flash_works:
            raise TypeError(TOO_OLD)
        if not pack.flash and not per_text_works:
            raise NotImplementedError("no kernel")
        return attention(query, key, value, replace(pack, flash=False), scaling, dropout)

    # A stand-in for a GPU: its tensors are on the CPU.
    monkeypatch.setattr(torch, "linspace", lambda *a, device, **options: linspace(*a, **options))
    monkeypatch.setattr(
        packed_attention, "make_pack", lambda lengths, _, flash: make_pack_on(lengths, CPU, flash=flash)
    )
    monkeypatch.setattr(packed_attention, "attention", fake)
    assert choose_kernel(HeadShape(4, 2, 100, 100), torch.device("cuda"), torch.bfloat16) == expected


def test_the_backward_pass_gets_what_the_forward_pass_left(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (tensor.requires_grad_() for tensor in states(TOKENS, dtype=torch.bfloat16))
    left = [torch.full((3,), float(i)) for i in range(3)]
    seen: dict[str, tuple] = {}

    def forward(q, k, v, *_, **__):
        return q * 1.0, *left, torch.empty(0)

    def backward(*arguments, scale):
        seen["arguments"] = arguments
        assert scale == 0.3
        return tuple(arguments[i] * 2.0 for i in (1, 2, 3))

    monkeypatch.setattr(packed_attention, "FLASH_FORWARD", forward)
    monkeypatch.setattr(packed_attention, "FLASH_BACKWARD", backward)
    monkeypatch.setattr(packed_attention, "device_kind", lambda _: "cuda")
    pack = make_pack(LENGTHS, CPU, flash=True)
    out = attention(query, key, value, pack, 0.3)
    out.sum().backward()
    d_out, q, k, v, saved, normalizer, cu_q, cu_k, max_q, max_k, dropout, causal, rng_state, unused = seen["arguments"]
    assert torch.equal(d_out, torch.ones(TOKENS, 4, 8))
    assert torch.equal(saved, out[0])
    assert [float(t[0]) for t in (normalizer, rng_state, unused)] == [0.0, 1.0, 2.0]
    assert torch.equal(cu_q, pack.cu_seqlens)
    assert torch.equal(cu_k, pack.cu_seqlens)
    assert (max_q, max_k, dropout, causal) == (max(LENGTHS), max(LENGTHS), 0.0, True)
    # Tokens first, and fewer key heads than query heads.
    assert (q.shape, k.shape, v.shape) == ((TOKENS, 4, 8), (TOKENS, 2, 8), (TOKENS, 2, 8))
    for leaf in (query, key, value):
        assert torch.equal(leaf.grad, 2 * leaf)


def test_the_oldest_torch_that_is_accepted_has_a_kernel_with_a_scale() -> None:
    # torch 2.10 has no scale in its public flash attention, so its operations were not built for one.
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    floor = next(line for line in pyproject["project"]["dependencies"] if line.startswith("torch"))
    assert Version("2.10.99") not in Requirement(floor).specifier
    named = {a.name for a in packed_attention.FLASH_FORWARD.default._schema.arguments}
    assert {"cum_seq_q", "max_q", "dropout_p", "is_causal", "return_debug_mask", "scale"} <= named


def test_the_kernel_for_all_texts_is_not_asked_for_dropout_that_it_does_not_have(monkeypatch) -> None:
    def without_dropout(*_, **__):
        raise AssertionError("the dropout is lost")

    monkeypatch.setattr(packed_attention, "FLASH_FORWARD", without_dropout)
    monkeypatch.setattr(packed_attention, "device_kind", lambda _: "cuda")
    query, key, value = states(TOKENS, dtype=torch.bfloat16)
    pack = make_pack(LENGTHS, CPU, flash=True)
    torch.manual_seed(0)
    first, second = (attention(query, key, value, pack, None, dropout=0.5) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("queries", [TOKENS, len(TEXTS)])
def test_the_kernel_on_a_gpu_gives_what_the_cpu_gives(queries: int) -> None:
    query, key, value = states(queries, dtype=torch.bfloat16)
    expected = attention(query, key, value, make_pack(LENGTHS, CPU), 0.3)
    pack = make_pack(LENGTHS, torch.device("cuda"), flash=True)
    found = attention(query.cuda(), key.cuda(), value.cuda(), pack, 0.3)
    assert torch.allclose(found.cpu().float(), expected.float(), atol=2e-2)
