from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmcls.data.splits import Split
from llmcls.model.cards import Card
from llmcls.model.kernel_costs import KernelCost
from llmcls.model.step_trace import MicroBatch, StepCost
from llmcls.recipe.load import load_recipe
from llmcls.training.epoch_cost import OPTIMIZER_BYTES, epoch_seconds, plan_passes


def split_of(lengths: list[int], window: int | None = None) -> Split:
    tokens = [np.arange(n, dtype=np.int32) for n in lengths]
    return Split("train", "train.csv", tokens, np.array(lengths, dtype=np.int32), None, None, window=window)


@pytest.fixture
def plan(write_recipe):
    def of(lengths: list[int], packs: bool, max_tokens: int, ranks: int = 1, window: int | None = None):
        recipe = load_recipe(write_recipe(), ["batch_size=2", "gradient_accumulation_steps=2"])
        tracer: Any = SimpleNamespace(recipe=recipe, packs=packs)
        return plan_passes(tracer, split_of(lengths, window), max_tokens, ranks)

    return of


def test_the_largest_micro_batch_and_the_passes_of_a_step_follow_from_the_lengths(plan) -> None:
    # Steps of four texts: all in one pass, or in two.
    found = plan([10] * 8, packs=True, max_tokens=40)
    assert (found.steps, found.passes) == (2, 1)
    assert found.largest == MicroBatch((10,) * 4)
    found = plan([10] * 8, packs=True, max_tokens=25)
    assert (found.passes, found.largest) == (2, MicroBatch((10, 10), accumulates=True))
    assert plan([10] * 8, packs=True, max_tokens=25, ranks=2).steps == 1


def test_padding_counts_where_texts_are_padded(plan) -> None:
    lengths = [30, 5, 5, 5]
    padded, packed = plan(lengths, packs=False, max_tokens=30), plan(lengths, packs=True, max_tokens=30)
    assert padded.largest.lengths == (30,)
    assert sorted(packed.largest.lengths) == [30]
    assert (padded.passes, packed.passes) == (2, 2)


def test_windows_are_texts(plan) -> None:
    found = plan([10, 4, 4, 4], packs=True, max_tokens=100, window=4)
    assert sorted(found.largest.lengths) == [2, 4, 4, 4, 4, 4]
    assert found.largest.windows is not None
    assert sorted(found.largest.windows) == [1, 1, 1, 3]


def test_the_time_is_that_of_all_passes_and_optimizer_steps(plan) -> None:
    passes = plan([10] * 8, packs=True, max_tokens=25)
    kernel = KernelCost("mm", "forward", "bfloat16", 10**12, 10**12, 0)
    cost = StepCost(passes.typical, 1, 0, 0, 0, 10**6, 0, 0, 0, 0, ((kernel, 3),))
    card = Card("x", 1, bandwidth=1e9, sixteen_bits=1e12, float32=1e12)
    assert epoch_seconds(passes, cost, card) == pytest.approx(2 * (2 * 3 + OPTIMIZER_BYTES * 1e6 / 1e9))
