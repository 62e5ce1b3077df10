from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llmcls.model import lora_products
from llmcls.model.lora_formulas import LORA_FORMULAS
from llmcls.model.lora_products import (
    MOST_RANKS,
    LoraLinear,
    adapted_product,
    adapted_product_backward,
    base_weight,
    rounded,
    seeds_for,
    suit_kernels,
)

BF16 = torch.bfloat16
WIDTH = 24


@pytest.fixture(autouse=True)
def _formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_products, "compute", lambda name, *arguments, compiled: LORA_FORMULAS[name][0](*arguments))


def layer(outputs: int, rank: int = 4, rate: float = 0.0, scaling: float = 2.0, bias: bool = False) -> LoraLinear:
    base = nn.Linear(WIDTH, outputs, bias=bias)
    return LoraLinear(base, torch.randn(rank, WIDTH), torch.randn(outputs, rank), scaling, rate)


def test_a_seed_for_each_group_that_drops_and_none_for_the_others() -> None:
    rows = torch.empty(2, WIDTH)
    groups = [[layer(8, rate=0.1)], [layer(8)], [layer(8, rate=0.2), layer(4, rate=0.2)]]
    torch.manual_seed(0)
    first, none, last = seeds_for(groups, rows)
    torch.manual_seed(0)
    assert [*seeds_for(groups[:1], rows), *seeds_for(groups[2:], rows)] == [first, last]
    assert none == 0 < min(first, last)
    state = torch.get_rng_state()
    assert seeds_for(groups[1:2], rows) == [0]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("sizes", [(8,), (8, 16, 4)])
def test_outputs_and_gradients_are_those_of_the_formula(sizes: tuple[int, ...], rate: float) -> None:
    torch.manual_seed(0)
    layers: list[Any] = [layer(size, rate=rate, bias=size == 16) for size in sizes]
    rows, d_outs = torch.randn(10, WIDTH), [torch.randn(10, size) for size in sizes]
    (seed,) = seeds_for([layers], rows)
    outputs, product = adapted_product(rows, layers, rounded(layers, torch.float32), seed)
    d_rows, gradients = adapted_product_backward(product, d_outs, of_input=True)
    assert adapted_product_backward(product, d_outs, of_input=False)[0] is None

    leaves = [rows, *[one.a for one in layers], *[one.b for one in layers]]
    for leaf in leaves:
        leaf.requires_grad_()
    kept = LORA_FORMULAS["lora_input_gradient"][0](torch.ones(10, 1), torch.ones(1, WIDTH), rate, seed)
    dropped = rows * kept / (1 - rate)
    expected = [one.base(rows) + one.scaling * dropped @ one.a.t() @ one.b.t() for one in layers]
    wanted = torch.autograd.grad(expected, leaves, d_outs)
    for found, other in zip([*outputs, d_rows, *gradients], [*expected, *wanted], strict=True):
        torch.testing.assert_close(found, other.detach(), rtol=1e-4, atol=1e-4)


def test_kernels_suit_few_layers_of_one_rank_and_one_factor() -> None:
    assert suit_kernels([layer(8), layer(4), layer(8)])
    assert not suit_kernels([layer(8)] * 4)
    assert not suit_kernels([layer(8), layer(8, rank=2)])
    assert not suit_kernels([layer(8), layer(8, scaling=1.0)])
    assert suit_kernels([layer(8, rank=MOST_RANKS)])
    assert not suit_kernels([layer(8, rank=MOST_RANKS // 2 + 1)] * 2)


def test_matrices_are_rounded_below_each_other() -> None:
    layers = [layer(8), layer(4)]
    a, b = rounded(layers, BF16)
    assert torch.equal(a, torch.cat([one.a for one in layers]).to(BF16))
    assert all(torch.equal(found, one.b.to(BF16)) for found, one in zip(b, layers, strict=True))


def test_a_frozen_weight_is_taken_as_it_is_if_its_precision_is_right() -> None:
    base = nn.Linear(WIDTH, 8)
    assert base_weight(base, torch.float32) is base.weight
    assert torch.equal(base_weight(base, BF16), base.weight.to(BF16))
