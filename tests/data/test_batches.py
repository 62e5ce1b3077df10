from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmcls.data.batches import (
    BatchSpec,
    balanced_weights,
    collate,
    plan_epoch,
    plan_evaluation,
)
from llmcls.data.splits import Split
from llmcls.data.steps import steps_per_epoch

LENGTHS = np.random.default_rng(0).lognormal(5, 0.9, 1003).clip(1, 1024).astype(np.int32)
SPECS = [
    BatchSpec(32, 1, 4096),
    BatchSpec(32, 2, 4096),
    BatchSpec(9, 3, 1, packed=True),
    BatchSpec(32, 1, 2048, packed=True),
    BatchSpec(64, 4, 1024, packed=True),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_row_is_used_once_per_epoch_in_steps_of_the_requested_size(spec: BatchSpec) -> None:
    steps = list(plan_epoch(LENGTHS, spec, seed=1, epoch=0))
    assert len(steps) == steps_per_epoch(len(LENGTHS), spec.global_batch_size)
    assert [s.rows for s in steps[:-1]] == [spec.global_batch_size] * (len(steps) - 1)
    rows = np.concatenate([m for s in steps for rank in s.micro_batches for m in rank])
    assert sorted(rows) == list(range(len(LENGTHS)))
    assert sum(s.tokens for s in steps) == LENGTHS.sum()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_rank_has_the_same_number_of_passes(spec: BatchSpec) -> None:
    for step in plan_epoch(LENGTHS, spec, seed=1, epoch=3):
        assert len(step.micro_batches) == spec.ranks
        assert len({len(rank) for rank in step.micro_batches}) == 1


def test_the_rows_of_a_step_do_not_depend_on_ranks_or_packing() -> None:
    def rows(spec: BatchSpec) -> list[set[int]]:
        plan = plan_epoch(LENGTHS, spec, seed=5, epoch=1)
        return [{int(r) for rank in s.micro_batches for m in rank for r in m} for s in plan]

    plain = rows(BatchSpec(32, 1, 4096))
    assert rows(BatchSpec(32, 2, 4096)) == plain
    assert rows(BatchSpec(32, 1, 1)) == plain
    assert rows(BatchSpec(32, 4, 999, packed=True)) == plain


def test_the_order_depends_only_on_seed_and_epoch_and_can_start_at_any_step() -> None:
    def flat(seed: int, epoch: int, first: int = 0) -> list[list[int]]:
        plan = plan_epoch(LENGTHS, BatchSpec(8, 1, 2048), seed, epoch, first)
        return [np.concatenate(s.micro_batches[0]).tolist() for s in plan]

    assert flat(1, 0) == flat(1, 0)
    assert flat(1, 0) != flat(1, 1)
    assert flat(1, 0) != flat(2, 0)
    assert flat(1, 0, first=7) == flat(1, 0)[7:]


@pytest.mark.parametrize("packed", [False, True])
def test_a_token_budget_is_kept_unless_one_text_alone_exceeds_it(packed: bool) -> None:
    spec = BatchSpec(64, 2, 600, packed)
    filled = []
    for step in plan_epoch(LENGTHS, spec, 0, 0):
        for micro in (m for rank in step.micro_batches for m in rank if len(m)):
            tokens = LENGTHS[micro].sum() if packed else len(micro) * LENGTHS[micro].max()
            assert len(micro) == 1 or tokens <= 600
            filled.append(tokens)
    assert np.mean(filled) > 400


def test_packed_rows_contain_no_padding_and_padded_ones_little() -> None:
    def real_share(packed: bool) -> float:
        steps = list(plan_epoch(LENGTHS, BatchSpec(32, 1, 2048, packed), 0, 0))
        micro = [m for step in steps for rank in step.micro_batches for m in rank]
        processed = sum(LENGTHS[m].sum() if packed else len(m) * LENGTHS[m].max() for m in micro)
        return sum(step.tokens for step in steps) / processed

    assert real_share(packed=True) == 1.0
    assert 0.7 < real_share(packed=False) < 1.0


def test_ranks_get_equal_tokens_even_if_lengths_are_skewed() -> None:
    skewed = np.random.default_rng(1).lognormal(4, 1.5, 4096).clip(1, 2048).astype(np.int32)
    load = np.zeros(2)
    for step in plan_epoch(skewed, BatchSpec(64, 2, 4096, packed=True), 0, 0):
        load += [sum(skewed[m].sum() for m in rank) for rank in step.micro_batches]
    assert abs(load[0] - load[1]) / load.sum() < 0.02


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_evaluation_visits_each_row_once_in_the_same_batches_for_any_number_of_ranks(ranks: int, packed: bool) -> None:
    plan = plan_evaluation(LENGTHS, ranks, 4096, packed)
    assert len({len(rank) for rank in plan}) == 1
    batches = sorted(tuple(b) for rank in plan for b in rank if len(b))
    assert sorted(r for b in batches for r in b) == list(range(len(LENGTHS)))
    assert batches == sorted(tuple(b) for b in plan_evaluation(LENGTHS, 1, 4096, packed)[0])


@pytest.fixture
def split() -> Split:
    """Eight rows of different lengths with two labels."""
    rng = np.random.default_rng(0)
    lengths = np.array([5, 2, 7, 3, 1, 9, 4, 6])
    tokens = [rng.integers(10, 99, n, dtype=np.int32) for n in lengths]
    labels = (rng.random((8, 2)) < 0.5).astype(np.float32)
    return Split("train", "train.csv", tokens, lengths, labels, None)


def test_a_batch_is_padded_on_the_right_or_packed(split: Split) -> None:
    rows = np.array([3, 0, 7])
    texts = [list(split.tokens[row]) for row in rows]
    padded, packed = collate(split, rows, 9), collate(split, rows, 9, packed=True)
    assert padded.lengths == packed.lengths == [len(t) for t in texts]
    longest = max(padded.lengths)
    assert padded.input_ids.tolist() == [t + [9] * (longest - len(t)) for t in texts]
    assert packed.input_ids.tolist() == [token for text in texts for token in text]
    assert torch.equal(padded.labels, torch.from_numpy(split.known_labels[rows]))
    nothing = collate(split, np.empty(0, dtype=np.int64), 9, packed=True)
    assert nothing.input_ids.tolist() == [9]
    assert nothing.labels.shape == (1, 2)


def test_a_row_in_windows_becomes_several_texts(split: Split) -> None:
    split = replace(split, window=4)
    batch = collate(split, np.array([0, 4, 5]), 9, packed=True)
    assert batch.lengths == [4, 1, 1, 4, 4, 1]
    assert batch.windows == [2, 1, 3]
    assert batch.labels.shape == (3, 2)


def test_balanced_sampling_draws_rare_labels_more_often_and_is_repeatable() -> None:
    marks = np.zeros((1000, 2), dtype=bool)
    marks[:900, 0], marks[960:, 1] = True, True
    weights = balanced_weights(marks)
    assert weights[0] == 1.0
    assert weights[930] == 1.0
    assert weights[999] == pytest.approx((900 / 40) ** 0.5)
    spec = BatchSpec(100, 1, 10_000)
    lengths = np.full(1000, 5)

    def drawn() -> np.ndarray:
        steps = plan_epoch(lengths, spec, 1, 0, weights=weights)
        return np.concatenate([rows for step in steps for micro in step.micro_batches for rows in micro])

    rows = drawn()
    assert len(rows) == 1000
    assert np.array_equal(rows, drawn())
    share = (rows >= 960).mean()
    assert share == pytest.approx(weights[960:].sum() / weights.sum(), abs=0.04)


def test_grouping_makes_steps_of_similar_lengths_and_loses_no_row() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 1037)
    plain, grouped = BatchSpec(32, 1, 4096), BatchSpec(32, 1, 4096, grouped=True)

    def steps(spec: BatchSpec) -> list[np.ndarray]:
        return [np.concatenate(s.micro_batches[0]) for s in plan_epoch(lengths, spec, 1, 0)]

    found = steps(grouped)
    assert sorted(np.concatenate(found).tolist()) == list(range(1037))
    assert [len(s) for s in found] == [32] * 32 + [13]
    spread = [np.mean([lengths[s].std() for s in steps(spec)]) for spec in (plain, grouped)]
    assert spread[1] < spread[0] / 10
    means = np.array([lengths[s].mean() for s in found[:-1]])
    assert abs(np.corrcoef(means, np.arange(32))[0, 1]) < 0.6
    resumed = [np.concatenate(s.micro_batches[0]) for s in plan_epoch(lengths, grouped, 1, 0, first_step=30)]
    assert all(np.array_equal(a, b) for a, b in zip(resumed, found[30:], strict=True))
