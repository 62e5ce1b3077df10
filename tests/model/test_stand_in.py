from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmcls.model.fused_ops import dropout
from llmcls.model.ledger import Ledger
from llmcls.model.stand_in import DeviceKind, device_kind, kind_of, standing_for

GPU, OLD_GPU, CPU = DeviceKind("cuda"), DeviceKind("cuda", flash=False), DeviceKind("cpu", False, False)


def operations(kind: DeviceKind, run) -> set[str]:
    """The names of the operations that a function calls on a device of this kind."""
    with standing_for(kind), Ledger([4, 4]) as ledger:
        run()
    return {kernel.name for kernel in ledger.kernels}


def test_a_tensor_computes_where_it_is_unless_it_stands_for_another() -> None:
    x = torch.ones(2)
    assert device_kind(x) == "cpu"
    with standing_for(GPU):
        assert device_kind(x) == "cuda"
    with standing_for(CPU):
        assert device_kind(x) == "cpu"
    assert device_kind(x) == "cpu"
    assert kind_of(torch.device("cpu")) == CPU


def test_dropout_keeps_the_mask_that_a_gpu_keeps() -> None:
    x = torch.ones(4, 64)
    assert operations(GPU, lambda: F.dropout(x, 0.5)) == {"native_dropout"}
    assert operations(GPU, lambda: dropout(x, 0.5, compiled=True)) == {"native_dropout"}
    assert operations(GPU, lambda: F.dropout(x, 0.5, training=False)) == set()
    assert "native_dropout" not in operations(CPU, lambda: F.dropout(x, 0.5))


@pytest.mark.parametrize(
    "kind, heads, masked, dtype, kernel",
    [
        (GPU, 4, False, torch.bfloat16, "_scaled_dot_product_flash_attention"),
        (GPU, 2, False, torch.bfloat16, "_scaled_dot_product_flash_attention"),
        (GPU, 4, True, torch.bfloat16, "_scaled_dot_product_efficient_attention"),
        (GPU, 4, False, torch.float32, "_scaled_dot_product_efficient_attention"),
        (OLD_GPU, 4, False, torch.float16, "_scaled_dot_product_efficient_attention"),
        # The memory-efficient kernel has no grouped heads.
        (OLD_GPU, 2, False, torch.float16, "bmm"),
    ],
)
def test_attention_runs_in_the_kernel_of_a_gpu(kind, heads: int, masked: bool, dtype, kernel: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        query, key = torch.empty(1, 4, 8, 16, dtype=dtype), torch.empty(1, heads, 8, 16, dtype=dtype)
        mask = torch.ones(8, 8, dtype=torch.bool) if masked else None
        found = operations(
            kind, lambda: F.scaled_dot_product_attention(query, key, key, attn_mask=mask, enable_gqa=heads < 4)
        )
    assert kernel in found


def test_autocast_keeps_norms_in_float32_as_on_a_gpu() -> None:
    x, weight = torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(8)

    def dtypes(kind: DeviceKind) -> list[torch.dtype]:
        with standing_for(kind), torch.autocast("cpu", dtype=torch.bfloat16):
            return [F.layer_norm(x, (8,), weight).dtype, x.pow(2).dtype, F.softmax(x, -1).dtype, (x @ x.t()).dtype]

    assert dtypes(GPU) == [torch.float32, torch.float32, torch.float32, torch.bfloat16]
    assert dtypes(CPU)[1:] == [torch.bfloat16, torch.bfloat16, torch.bfloat16]
