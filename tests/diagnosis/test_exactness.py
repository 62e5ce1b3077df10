from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmcls.diagnosis import exactness
from llmcls.model import kernels, packed_attention
from tests.diagnosis.helpers import find


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fused_kernel_that_is_wrong_for_longer_rows_is_a_fault(
    dtype: str, write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The trial before a training has 16 tokens.
    real = kernels.gated_activation

    def loses_the_gate(gate: torch.Tensor, up: torch.Tensor, *more: Any) -> torch.Tensor:
        return real(gate, up, *more) if gate.shape[-2] <= 16 else real(gate * 0.9, up, *more)

    recipe = write_recipe(model__torch_dtype=dtype)
    assert find("fused", tmp_path, recipe).status == "ok"
    monkeypatch.setattr(kernels, "gated_activation", loses_the_gate)
    found = find("fused", tmp_path, recipe)
    assert found.status == "fault"
    assert found.found.startswith("not true: fused kernels give the states and gradients of plain modules")
    assert "set train.kernels to off" in found.advice
    assert find("packing", tmp_path, recipe).status == "ok"


def test_a_wrong_gradient_alone_is_a_fault(write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient / 2

    real = packed_attention.attention

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Any, *more: Any) -> torch.Tensor:
        return real(query, Halved.apply(key) if len(pack.lengths) > 3 else key, value, pack, *more)

    monkeypatch.setattr(packed_attention, "attention", attention)
    found = find("packing", tmp_path, write_recipe())
    assert found.status == "fault"
    assert found.details["logits"] < 1e-5 < found.details["gradients"]


def test_one_query_per_text_that_ignores_a_key_is_a_fault(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exactness.attention

    def forgets_the_first_key(query: Any, key: Any, value: Any, pack: Any, *more: Any) -> torch.Tensor:
        if query.shape[2] < key.shape[2]:
            value = torch.cat([torch.zeros_like(value[:, :, :1]), value[:, :, 1:]], dim=2)
        return real(query, key, value, pack, *more)

    recipe = write_recipe(model__torch_dtype="bfloat16")
    found = find("last-token", tmp_path, recipe)
    assert found.status == "ok"
    assert "(6 query and 2 key heads of width 16)" in found.found
    monkeypatch.setattr(exactness, "attention", forgets_the_first_key)
    found = find("last-token", tmp_path, recipe)
    assert found.status == "fault"
    assert "gives other results than all queries, off by" in found.found


def test_results_that_are_not_numbers_are_never_right() -> None:
    plain = exactness._Distance(1e-3, 1e-3)
    assert exactness._verdict("it works", plain, plain, "repair", 1).status == "ok"
    for nothing in (exactness._Distance(float("nan"), 1e-3), exactness._Distance(1e-3, float("nan"))):
        assert exactness._verdict("it works", nothing, plain, "repair", 1).status == "fault"
        assert exactness._verdict("it works", plain, nothing, "repair", 1).status == "warning"
