from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.training.inputs import load_inputs
from llmcls.training.setup import TrainingSetup


@pytest.fixture
def setup(write_recipe):
    def of(*overrides: str) -> TrainingSetup:
        recipe, accelerator = load_recipe(write_recipe(), list(overrides)), Accelerator(cpu=True)
        inputs = load_inputs(recipe, accelerator)
        split, validation = inputs.train_split, inputs.validation_split
        return TrainingSetup(recipe, 3, RunFolder(Path()), accelerator, inputs.labels, split, validation, 16, True, 512)

    return of


def test_steps_follow_from_rows_and_epochs_or_from_their_limit(setup) -> None:
    assert setup("num_train_epochs=3").total_steps == 30
    assert setup("num_train_epochs=3", "max_steps=7").total_steps == 7


def test_batches_have_the_recipes_size_on_all_ranks(setup) -> None:
    batches = setup("group_by_length=true").batches
    assert (batches.ranks, batches.max_tokens, batches.packed) == (1, 512, True)
    assert batches != setup("group_by_length=false").batches


def test_balanced_sampling_draws_rows_of_rare_labels_more_often(setup) -> None:
    assert setup().row_weights is None
    balanced = setup("sampling=balanced")
    weights, marks = balanced.row_weights, balanced.train_split.known_labels
    rarest = int(np.argmin(marks.sum(axis=0)))
    assert weights[marks[:, rarest] > 0].mean() > weights[marks[:, rarest] == 0].mean()


def test_thresholds_without_validation_rows_are_one_half(setup) -> None:
    found = setup("at_least_one_label=true").thresholds
    assert set(found.values) == {0.5}
    assert found.at_least_one
    assert not setup().thresholds.at_least_one


def test_only_a_rank_with_a_log_records(setup) -> None:
    class Log:
        def __init__(self) -> None:
            self.written: list = []

        def write(self, *values) -> None:
            self.written.append(values)

    one, log = setup(), Log()
    one.record(1, "train", {"loss": 1.0})
    replace(one, run_log=log).record(2, "train", {"loss": 0.5})
    assert log.written == [(2, "train", {"loss": 0.5})]
