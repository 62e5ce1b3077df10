from __future__ import annotations

from typing import Any

import pytest
import torch

from llmcls.model import launch
from llmcls.model.launch import start


class Kernel:
    """What Triton's kernels do when they are started: a call finds a variant, which can be started by itself."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, ...]] = []
        self.started: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def call(*arguments: Any, num_warps: int, num_stages: int) -> Any:
            self.found.append((grid, arguments, num_warps, num_stages))
            return self.variant()

        return call

    def variant(self) -> Any:
        kernel = self

        class Variant:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                return lambda *arguments: kernel.started.append((grid, arguments))

        return Variant()


@pytest.fixture(autouse=True)
def _no_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_variants", {})


def test_a_variant_is_looked_for_once_and_then_started_with_addresses_and_all_arguments() -> None:
    kernel, x = Kernel(), torch.empty(32)
    start(kernel, (1, 2, 3), (x,), (100,), (0.5,), (64,), (True, 8), 8, 2)
    assert kernel.found == [((1, 2, 3), (x, 100, 0.5, 64, True, 8), 8, 2)]
    other = torch.empty(16)
    start(kernel, (4, 5, 6), (other,), (101,), (0.75,), (32,), (True, 8), 8, 2)
    assert len(kernel.found) == 1
    assert kernel.started == [((4, 5, 6), (other.data_ptr(), 101, 0.75, 32, True, 8))]


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": (torch.empty(32, dtype=torch.bfloat16),)},
        # Not at a multiple of 16 bytes.
        {"tensors": (torch.empty(33)[1:],)},
        {"sizes": (65,)},
        {"sizes": (1,)},
        {"constants": (False, 8)},
        {"warps": 4},
        {"stages": 3},
    ],
    ids=["precision", "alignment", "odd size", "size of one", "constant", "warps", "stages"],
)
def test_what_makes_another_variant_is_looked_for_again(change: dict[str, Any]) -> None:
    usual: dict[str, Any] = {
        "tensors": (torch.empty(32),), "varying": (100,), "floats": (), "sizes": (64,), "constants": (True, 8),
        "warps": 8, "stages": 2,
    }  # fmt: skip
    kernel = Kernel()
    start(kernel, (1, 1, 1), **usual)
    start(kernel, (1, 1, 1), **usual)
    assert len(kernel.found) == 1
    start(kernel, (1, 1, 1), **usual | change)
    assert len(kernel.found) == 2
    start(Kernel(), (1, 1, 1), **usual)
    assert len(kernel.found) == 2


def test_without_variants_every_call_goes_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    monkeypatch.setattr(kernel, "variant", lambda: None)
    for _ in range(2):
        start(kernel, (1, 1, 1), (torch.empty(32),), (), (), (), ())
    assert len(kernel.found) == 2
