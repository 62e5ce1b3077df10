from __future__ import annotations

import pytest
from accelerate import PartialState

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.training.inputs import load_inputs
from tests.helpers import TOPICS


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
