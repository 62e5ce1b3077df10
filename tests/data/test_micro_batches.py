from __future__ import annotations

import csv

import numpy as np
import pytest

from llmcls.data.batches import BatchSpec, plan_epoch, plan_step
from llmcls.data.micro_batches import balanced_bins, even_runs
from tests.helpers import REUTERS, needs_real_data


def cost(lengths: np.ndarray, rows: np.ndarray, packed: bool) -> int:
    """Tokens of a micro-batch, with padding."""
    return 0 if not len(rows) else int(lengths[rows].sum() if packed else len(rows) * lengths[rows].max())


def greedy_passes(lengths: np.ndarray, ranks: int, max_tokens: int, packed: bool) -> int:
    """Passes if rows are dealt to the rank with the fewest tokens, in equal numbers, and each takes what fits."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    room = [len(lengths) // ranks + (rank < len(lengths) % ranks) for rank in range(ranks)]
    for length in sorted(lengths.tolist(), reverse=True):
        rank = min((r for r in range(ranks) if len(shares[r]) < room[r]), key=lambda r: (sum(shares[r]), r))
        shares[rank].append(length)
    most = 0
    for share in shares:
        passes, tokens, longest, count = 0, 0, 0, 0
        for length in share:
            if count and (tokens + length if packed else longest * (count + 1)) <= max_tokens:
                tokens, count = tokens + length, count + 1
            else:
                passes, tokens, longest, count = passes + 1, length, length, 1
        most = max(most, passes)
    return most


def some_lengths(rng: np.random.Generator) -> np.ndarray:
    """Lengths of a step: skewed, even, or of a few kinds."""
    rows = int(rng.integers(1, 70))
    kinds = [rng.lognormal(4, 1.2, rows), rng.integers(1, 100, rows), rng.choice([1, 7, 33, 50, 64, 90], rows)]
    return kinds[rng.integers(3)].clip(1, 2000).astype(np.int64)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_used_once_within_the_budget_in_no_more_passes_than_greedily(seed: int, packed: bool) -> None:
    rng = np.random.default_rng(seed)
    fewer = 0
    for _ in range(250):
        lengths, ranks, budget = some_lengths(rng), int(rng.integers(1, 5)), int(rng.integers(1, 600))
        spec = BatchSpec(len(lengths), ranks, budget, packed)
        step, again = (plan_step(np.arange(len(lengths)), lengths, spec) for _ in range(2))
        micro_batches = [rows for of_rank in step.micro_batches for rows in of_rank]
        assert sorted(np.concatenate(micro_batches).tolist()) == list(range(len(lengths)))
        assert all(len(rows) <= 1 or cost(lengths, rows, packed) <= budget for rows in micro_batches)
        (passes,) = {len(of_rank) for of_rank in step.micro_batches}
        greedy = greedy_passes(lengths, ranks, budget, packed)
        assert passes <= greedy
        fewer += passes < greedy
        assert [[m.tolist() for m in r] for r in step.micro_batches] == [
            [m.tolist() for m in r] for r in again.micro_batches
        ]
    assert fewer > 25


@pytest.mark.parametrize("packed, median, mostly", [(True, 1.01, 1.1), (False, 1.35, 2.5)])
def test_the_passes_of_a_step_are_nearly_equal(packed: bool, median: float, mostly: float) -> None:
    lengths = np.random.default_rng(0).lognormal(5.5, 0.8, 4000).clip(1, 1024).astype(np.int64)
    for ranks in (1, 4):
        ratios = []
        for step in plan_epoch(lengths, BatchSpec(32 * ranks, ranks, 8192, packed), 1, 0):
            costs = [cost(lengths, rows, packed) for of_rank in step.micro_batches for rows in of_rank]
            ratios.append(max(costs) / max(1, min(costs)))
        assert np.median(ratios) < median
        assert np.percentile(ratios, 90) < mostly


def test_a_full_budget_is_used_where_equal_shares_do_not_fit() -> None:
    # Two bins of 12: the smallest sum first gives 6 + 4 + 4 = 14.
    assert balanced_bins([6, 6, 4, 4, 4], ranks=1, max_tokens=12) == [[0, 1], [2, 3, 4]]


def test_a_row_above_the_budget_is_alone() -> None:
    assert balanced_bins([50, 9, 1], ranks=1, max_tokens=10) == [[0], [1, 2]]
    assert even_runs(np.array([50, 9, 1]), 1, 10, packed=True) == [slice(0, 1), slice(1, 3)]


def test_more_bins_than_rows_leave_some_empty() -> None:
    assert balanced_bins([5, 4], ranks=3, max_tokens=10) == [[0], [1], []]


def test_padded_rows_stay_with_rows_of_similar_length() -> None:
    lengths = np.array([100, 98, 95, 30, 29, 28, 27, 26, 25, 24])
    assert even_runs(lengths, 1, 300, packed=False) == [slice(0, 3), slice(3, 10)]


@needs_real_data
def test_short_passes_of_reuters_are_gone() -> None:
    csv.field_size_limit(2**31 - 1)
    with (REUTERS / "train.csv").open(encoding="utf-8", newline="") as file:
        # About four characters are a token.
        lengths = np.array([min(1024, 1 + len(row["title"] + row["body"]) // 4) for row in csv.DictReader(file)])
    steps = list(plan_epoch(lengths, BatchSpec(32, 1, 8192, packed=True), 1, 0))
    tokens = np.array([lengths[rows].sum() for step in steps[:-1] for rows in step.micro_batches[0]])
    assert (tokens < 3000).mean() < 0.01
