from __future__ import annotations

import numpy as np
import pytest

from llmcls.batching import BatchSpec, plan_epoch, plan_evaluation, steps_per_epoch

LENGTHS = np.random.default_rng(0).lognormal(5, 0.9, 1003).clip(1, 1024).astype(np.int32)
SPECS = [
    BatchSpec(4, 32, 1),
    BatchSpec(4, 32, 2),
    BatchSpec(3, 9, 3),
    BatchSpec(4, 32, 1, 2048),
    BatchSpec(4, 64, 4, 1024),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_row_is_taken_once_an_epoch_in_steps_of_the_asked_size(spec: BatchSpec) -> None:
    steps = list(plan_epoch(LENGTHS, spec, seed=1, epoch=0))
    assert len(steps) == steps_per_epoch(len(LENGTHS), spec)
    assert [s.rows for s in steps[:-1]] == [spec.step_rows] * (len(steps) - 1)
    rows = np.concatenate([m for s in steps for rank in s.micro_batches for m in rank])
    assert sorted(rows) == list(range(len(LENGTHS)))
    assert sum(s.tokens for s in steps) == LENGTHS.sum()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_rank_takes_the_same_number_of_passes(spec: BatchSpec) -> None:
    for step in plan_epoch(LENGTHS, spec, seed=1, epoch=3):
        assert len(step.micro_batches) == spec.ranks
        assert len({len(rank) for rank in step.micro_batches}) == 1


def test_the_rows_of_a_step_do_not_depend_on_ranks_or_packing() -> None:
    def rows(spec: BatchSpec) -> list[set[int]]:
        plan = plan_epoch(LENGTHS, spec, seed=5, epoch=1)
        return [{int(r) for rank in s.micro_batches for m in rank for r in m} for s in plan]

    plain = rows(BatchSpec(4, 32, 1))
    assert rows(BatchSpec(4, 32, 2)) == plain
    assert rows(BatchSpec(32, 32, 1)) == plain
    assert rows(BatchSpec(4, 32, 4, 999)) == plain


def test_order_depends_on_seed_and_epoch_alone_and_can_start_inside() -> None:
    def flat(seed: int, epoch: int, first: int = 0) -> list[list[int]]:
        plan = plan_epoch(LENGTHS, BatchSpec(4, 8, 1), seed, epoch, first)
        return [np.concatenate(s.micro_batches[0]).tolist() for s in plan]

    assert flat(1, 0) == flat(1, 0)
    assert flat(1, 0) != flat(1, 1)
    assert flat(1, 0) != flat(2, 0)
    assert flat(1, 0, first=7) == flat(1, 0)[7:]


def test_a_token_budget_is_kept_unless_one_text_alone_exceeds_it() -> None:
    spec = BatchSpec(4, 64, 2, 600)
    for step in plan_epoch(LENGTHS, spec, 0, 0):
        for micro in (m for rank in step.micro_batches for m in rank if len(m)):
            assert len(micro) == 1 or len(micro) * LENGTHS[micro].max() <= 600


def test_ranks_carry_equal_tokens_even_when_lengths_are_skewed() -> None:
    skewed = np.random.default_rng(1).lognormal(4, 1.5, 4096).clip(1, 2048).astype(np.int32)
    load = np.zeros(2)
    for step in plan_epoch(skewed, BatchSpec(4, 64, 2), 0, 0):
        load += [sum(skewed[m].sum() for m in rank) for rank in step.micro_batches]
    assert abs(load[0] - load[1]) / load.sum() < 0.02


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [None, 4096])
def test_evaluation_visits_each_row_once_in_the_same_batches_for_any_ranks(ranks: int, budget: int | None) -> None:
    plan = plan_evaluation(LENGTHS, 7, ranks, budget)
    assert len({len(rank) for rank in plan}) == 1
    batches = sorted(tuple(b) for rank in plan for b in rank if len(b))
    assert sorted(r for b in batches for r in b) == list(range(len(LENGTHS)))
    assert batches == sorted(tuple(b) for b in plan_evaluation(LENGTHS, 7, 1, budget)[0])
