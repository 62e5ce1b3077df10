from __future__ import annotations

import math
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.data.splits import Split
from llmcls.evaluation import scoring
from llmcls.evaluation.calibration import Calibration
from llmcls.evaluation.scoring import Scorer, evaluate_logits, make_scorer, score_chunks, score_split
from llmcls.evaluation.thresholds import fixed_thresholds
from llmcls.recipe.load import load_recipe
from tests.model.helpers import build

LABELS = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


class SumAndLength(torch.nn.Module):
    """A model whose logits are the sum of a text's tokens and its length."""

    def forward(self, input_ids: torch.Tensor, lengths: list[int], windows: None = None) -> torch.Tensor:
        texts = (
            input_ids.split(lengths)
            if input_ids.dim() == 1
            else [t[:n] for t, n in zip(input_ids, lengths, strict=True)]
        )
        return torch.tensor([[float(text.sum()), float(len(text))] for text in texts])


@pytest.fixture
def split() -> Split:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 61)
    tokens = [rng.integers(1, 99, n, dtype=np.int32) for n in lengths]
    return Split("test", "test.csv", tokens, lengths, None, None)


def scorer(max_tokens: int = 64, packed: bool = True) -> Scorer:
    return Scorer(Accelerator(cpu=True), SumAndLength(), LABELS, 0, max_tokens, packed)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 64, 10_000])
def test_every_row_is_scored_once_and_in_order(split: Split, packed: bool, max_tokens: int) -> None:
    found = score_split(scorer(max_tokens, packed), split)
    assert found.dtype == np.float32
    assert found.tolist() == [[float(t.sum()), float(len(t))] for t in split.tokens]


def test_chunks_start_where_they_are_told_and_join_to_the_whole(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_split(scorer(), split)
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 16)
    chunks = list(score_chunks(scorer(), split, start=32))
    assert [first for first, _ in chunks] == [32, 48]
    assert [len(logits) for _, logits in chunks] == [16, 13]
    assert np.array_equal(np.concatenate([logits for _, logits in chunks]), whole[32:])


def test_a_row_that_is_lost_stops_the_evaluation(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scoring.plan_evaluation
    monkeypatch.setattr(scoring, "plan_evaluation", lambda *a: [rank[1:] for rank in real(*a)])
    with pytest.raises(RuntimeError, match="rows 0 to 61 were scored between 0"):
        score_split(scorer(), split)


def test_the_model_is_evaluated_without_dropout_and_trained_afterwards(split: Split) -> None:
    trained = scorer()
    trained.model.train()
    for _ in score_chunks(trained, split):
        assert not trained.model.training
    assert trained.model.training


def test_the_recipe_sets_the_evaluation_batch(write_recipe) -> None:
    path = write_recipe()
    found = make_scorer(Accelerator(cpu=True), build(path), LABELS, 0, load_recipe(path, ["eval_batch_size=3"]))
    assert found.max_tokens == 3 * 64
    assert found.packed


def test_the_loss_is_the_mean_cross_entropy_and_decisions_follow_the_thresholds() -> None:
    logits, values = np.array([[2.0, -1.0], [0.5, 0.2]], dtype=np.float32), np.array([[1, 0], [0, 1]], dtype=np.float32)
    found = evaluate_logits(logits, values, LABELS, fixed_thresholds(2, 0.6))
    p = 1 / (1 + np.exp(-logits))
    assert found.metrics["loss"] == pytest.approx(-np.where(values == 1, np.log(p), np.log(1 - p)).mean())
    assert found.probabilities == pytest.approx(p)
    assert found.predicted.tolist() == [[True, False], [True, False]]
    assert found.metrics["accuracy"] == 0.5


def test_calibration_changes_probabilities_and_not_the_loss() -> None:
    logits, values = np.array([[2.0, -1.0]], dtype=np.float32), np.array([[1, 0]], dtype=np.float32)
    plain = evaluate_logits(logits, values, LABELS, fixed_thresholds(2))
    found = evaluate_logits(logits, values, LABELS, fixed_thresholds(2), Calibration("temperature", 2.0))
    assert found.probabilities[0, 0] == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert found.metrics["loss"] == plain.metrics["loss"]


def test_rows_whose_scores_are_not_numbers_are_named(split: Split) -> None:
    class Broken(SumAndLength):
        def forward(self, input_ids: torch.Tensor, lengths: list[int], windows: None = None) -> torch.Tensor:
            found = super().forward(input_ids, lengths)
            return torch.where(found[:, 1:] == split.lengths[0], float("nan"), found)

    rows = [i for i, length in enumerate(split.lengths) if length == split.lengths[0]]
    named = replace(split, table=datasets.Dataset.from_dict({"id": [f"row {i}" for i in range(61)]}))
    broken = replace(scorer(), model=Broken(), advice="lower train.learning_rate (0.1)")
    with pytest.raises(UserError) as stop:
        score_split(broken, named)
    shown = ", ".join(f"'row {i}'" for i in rows)
    assert str(stop.value) == (
        f"test.csv: the model gives no numbers for {len(rows)} of 61 rows ({shown}); lower train.learning_rate (0.1), "
        "and train again"
    )
