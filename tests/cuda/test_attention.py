"""Packed attention in the kernels of a GPU, against the formula in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmcls.model.packed_attention import HeadShape, attention, choose_kernel, make_pack
from llmcls.model.stand_in import kind_of
from tests.cuda import DEVICE, NEEDS_GPU
from tests.cuda.helpers import off, random

pytestmark = NEEDS_GPU

# As in Llama-3.2-1B, SmolLM2-135M, Gemma-3-1B and Phi-2: query heads, key heads, width.
SHAPES = [HeadShape(32, 8, 64, 64), HeadShape(9, 3, 64, 64), HeadShape(4, 1, 256, 256), HeadShape(8, 8, 80, 80)]
# No flash attention: values narrower than keys, a width that eight does not divide, a width that is too large.
OTHER_SHAPES = [HeadShape(4, 4, 192, 128), HeadShape(4, 2, 100, 100), HeadShape(4, 4, 512, 512)]
LENGTHS = [17, 1, 40, 5, 64, 300, 2, 129]
# Relative to the largest value. Products of float32 numbers may be sums of three products of rounded ones.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
ALL, ONE = sum(LENGTHS), len(LENGTHS)


def states(shape: HeadShape, queries: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random query, key and value on the CPU, in the memory layout that a projection leaves."""
    sizes = [
        (queries, shape.heads, shape.width), (ALL, shape.key_heads, shape.width),
        (ALL, shape.key_heads, shape.value_width),
    ]  # fmt: skip
    return [random(1, *size, seed=i).transpose(1, 2).to(dtype) for i, size in enumerate(sizes)]


def text_by_text(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """The formula of attention, for each text alone."""
    groups, one = query.shape[1] // key.shape[1], query.shape[2] == ONE
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    outs = []
    for q, k, v in zip(
        query.split(1 if one else LENGTHS, 2), key.split(LENGTHS, 2), value.split(LENGTHS, 2), strict=True
    ):
        scores = q @ k.transpose(-1, -2) * query.shape[-1] ** -0.5
        if causal and not one:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
        outs.append(scores.softmax(-1) @ v)
    return torch.cat(outs, dim=2).transpose(1, 2)


def output_and_gradients(
    attend: Callable[..., torch.Tensor], inputs: list[torch.Tensor], weights: torch.Tensor
) -> list[torch.Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = attend(*leaves)
    return [out, *torch.autograd.grad((out.float() * weights.to(out.device)).sum(), leaves)]


@pytest.mark.parametrize(
    "queries, causal", [(ALL, True), (ALL, False), (ONE, True)], ids=["causal", "bidirectional", "one query per text"]
)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.heads} heads, {s.key_heads} keys, width {s.width}")
@pytest.mark.parametrize(
    "dtype, flash",
    [(torch.bfloat16, True), (torch.float16, True), (torch.bfloat16, False), (torch.float32, False)],
    ids=["flash bf16", "flash fp16", "per text bf16", "per text float32"],
)
def test_the_kernels_of_a_gpu_give_the_values_and_gradients_of_the_formula(
    dtype: torch.dtype, flash: bool, shape: HeadShape, queries: int, causal: bool
) -> None:
    inputs, weights = states(shape, queries, dtype), random(1, queries, shape.heads, shape.value_width, seed=9)
    expected = output_and_gradients(lambda *qkv: text_by_text(*qkv, causal), [x.float() for x in inputs], weights)
    pack = make_pack(LENGTHS, DEVICE, causal, flash)
    found = output_and_gradients(lambda *qkv: attention(*qkv, pack, None), [x.to(DEVICE) for x in inputs], weights)
    assert (found[0].dtype, found[0].device.type) == (dtype, DEVICE.type)
    distances = {name: off(a, b) for name, a, b in zip(("out", "query", "key", "value"), found, expected, strict=True)}
    assert all(distance <= TOLERANCES[dtype] for distance in distances.values()), distances
    with torch.no_grad():
        again = attention(*(x.to(DEVICE) for x in inputs), pack, None)
    assert off(again, found[0]) <= TOLERANCES[dtype]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_card_since_ampere_has_flash_attention(shape: HeadShape) -> None:
    if torch.cuda.get_device_capability(DEVICE) < (8, 0):
        pytest.skip("this card is older")
    assert choose_kernel(shape, DEVICE, torch.bfloat16) == ("flash", "")
    assert choose_kernel(shape, DEVICE, torch.float16) == ("flash", "")
    kernel, reason = choose_kernel(shape, DEVICE, torch.float32)
    assert (kernel, reason) == ("per text", "flash attention needs 16 bits (model.torch_dtype)")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *OTHER_SHAPES], ids=str)
def test_a_trial_on_the_gpu_finds_the_kernel_that_is_believed_without_one(shape: HeadShape, dtype: torch.dtype) -> None:
    assert choose_kernel(shape, DEVICE, dtype)[0] == choose_kernel(shape, kind_of(DEVICE), dtype)[0]
