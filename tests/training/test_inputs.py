from __future__ import annotations

import pytest
from accelerate import PartialState

from llmcls.common.user_error import UserError
from llmcls.evaluation.baselines import run_baselines
from llmcls.recipe.load import load_recipe
from llmcls.training.inputs import load_inputs
from tests.helpers import TOPICS, read_rows


def test_every_split_of_the_recipe_is_tokenized_with_the_same_labels(write_recipe, log_lines: list[str]) -> None:
    inputs = load_inputs(load_recipe(write_recipe()), PartialState(cpu=True))
    assert inputs.labels.names == TOPICS
    assert inputs.validation_split is not None
    assert inputs.test_split is not None
    assert [len(s) for s in (inputs.train_split, inputs.validation_split, inputs.test_split)] == [160, 40, 61]
    assert inputs.test_split.known_labels.shape[0] == 61
    assert max(inputs.train_split.lengths) <= 64
    assert inputs.tokenizer.pad_token_id is not None


def test_splits_that_a_recipe_lacks_are_none(write_recipe) -> None:
    inputs = load_inputs(load_recipe(write_recipe(data__val_csv=None, data__test_csv=None)), PartialState(cpu=True))
    assert inputs.validation_split is None
    assert inputs.test_split is None


def test_a_missing_file_is_named_with_its_key(write_recipe) -> None:
    recipe = load_recipe(write_recipe(data__val_csv="nowhere/validation.csv"))
    with pytest.raises(UserError, match=r"data\.val_csv.*nowhere/validation\.csv"):
        load_inputs(recipe, PartialState(cpu=True))


def test_a_sample_of_the_training_rows_keeps_their_ids_and_all_labels(write_recipe, products, log_lines) -> None:
    recipe = load_recipe(write_recipe(data__train_rows=6))
    inputs = load_inputs(recipe, PartialState(cpu=True))
    split = inputs.train_split
    assert len(split) == len(split.tokens) == len(split.known_labels) == 6
    assert inputs.labels.names == TOPICS
    assert any("train.csv, 6 rows" in line for line in log_lines)
    known = {row["uid"]: [row[topic] == "1" for topic in TOPICS] for row in read_rows(products / "train.csv")}
    assert [known[uid] for uid in split.ids(0)] == (split.known_labels == 1).tolist()
    assert inputs.test_split is not None
    assert len(inputs.test_split) == 61
    # The baselines read the same rows.
    baselines = run_baselines(recipe, inputs.labels)
    whole = run_baselines(load_recipe(write_recipe(data__train_rows=None)), inputs.labels)
    assert baselines is not None
    assert whole is not None
    found, best = (b["tfidf_linear"].metrics["test"]["f1_micro"] for b in (baselines, whole))
    assert found < best - 0.2
