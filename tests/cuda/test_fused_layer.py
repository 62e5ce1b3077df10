"""A whole decoder layer in the kernels of a GPU, against its modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmcls.model import kernels
from tests.cuda import NEEDS_GPU
from tests.cuda.helpers import no_waiting, off
from tests.model.test_fused_layer import ALL, Adapted

pytestmark = NEEDS_GPU


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_states_are_those_of_the_modules_and_gradients_differ_by_rounding(
    monkeypatch: pytest.MonkeyPatch, kind: str, rate: float
) -> None:
    taken: list[Any] = []
    whole = kernels.whole_layer
    monkeypatch.setattr(kernels, "whole_layer", lambda *arguments: taken.append(whole(*arguments)) or taken[-1])
    adapted = Adapted(kind, rate, device="cuda")
    found = adapted.states_and_gradients()
    assert [out is not None for out in taken] == [True, True]
    # Variants of kernels are known now.
    with no_waiting():
        adapted.states_and_gradients()
    monkeypatch.setattr(kernels, "whole_layer", lambda *_: None)
    expected = adapted.states_and_gradients()
    assert len(found) == len(expected) == 1 + 3 * 2 * len(ALL)
    assert torch.equal(found[0], expected[0])
    # Flash attention adds up the gradients of queries in no fixed order.
    distances = [off(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(distances) <= 2e-2, distances
