from __future__ import annotations

import torch

from llmcls.model.fused_ops import gated_activation
from llmcls.model.ledger import Ledger

KB = 1024


def numbers(count: int) -> torch.Tensor:
    return torch.ones(count * KB // 4)


def test_memory_is_live_from_the_allocation_to_the_last_reference() -> None:
    with Ledger([1]) as ledger:
        a = numbers(4)
        view = a[10:]
        assert ledger.live == 4 * KB
        del a
        assert ledger.live == 4 * KB
        b = view * 2
        del view
        assert ledger.live < 4 * KB
        b += 1
    assert ledger.peak == 4 * KB + b.numel() * 4


def test_sizes_are_rounded_up_as_the_allocator_does() -> None:
    with Ledger([1], block=512) as ledger:
        a = torch.ones(3)
    assert ledger.live == 512
    assert a.sum() == 3


def test_tensors_that_existed_before_are_counted_once_and_told_apart_at_the_peak() -> None:
    held, later = numbers(8), []
    view = held[1:]
    with Ledger([1]) as ledger:
        assert ledger.hold([held, view]) == 8 * KB
        temporary = numbers(6)
        del temporary
        later.append(numbers(2))
    assert ledger.peak == 14 * KB
    assert ledger.bytes_at_peak([held, *later]) == 8 * KB


def test_casts_of_held_tensors_are_told_apart_at_the_peak() -> None:
    weight, other = numbers(8), numbers(2)
    with Ledger([1]) as ledger:
        ledger.hold([weight])
        cast, unrelated = weight.bfloat16(), other.bfloat16()
        assert ledger.casts_at_peak == cast.numel() * 2 == 4 * KB
        del cast
        more = [unrelated, numbers(16)]
    assert ledger.casts_at_peak == 0
    assert len(more) == 2


def test_the_memory_of_a_backward_pass_is_seen() -> None:
    x = numbers(1).requires_grad_()
    with Ledger([1]) as ledger:
        y = x.exp().sum()
        kept = ledger.live
        ledger.phase = "backward"
        y.backward()
    assert kept >= KB
    assert {kernel.phase for kernel in ledger.kernels} == {"forward", "backward"}
    assert ledger.live >= KB  # the gradient


def test_views_are_no_kernels() -> None:
    with Ledger([1]) as ledger:
        numbers(4).view(4, -1).t()[1:].unsqueeze(0)
    assert {kernel.name for kernel in ledger.kernels} == {"ones"}


def test_a_compiled_formula_is_one_kernel_and_an_uncompiled_one_its_operations() -> None:
    gate, up = torch.ones(2, 8), torch.ones(2, 8)

    def kernels(compiled: bool) -> list[str]:
        from torch._subclasses.fake_tensor import FakeTensorMode

        # Fake tensors, so that nothing is compiled.
        with FakeTensorMode(allow_non_fake_inputs=True), Ledger([2]) as ledger:
            gated_activation(torch.empty_like(gate), torch.empty_like(up), "silu", compiled)
        return sorted(kernel.name for kernel in ledger.kernels)

    assert kernels(compiled=True) == ["gated_activation"]
    assert kernels(compiled=False) == ["mul", "silu"]
