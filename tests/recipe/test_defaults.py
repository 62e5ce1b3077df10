from __future__ import annotations

import pytest

from llmcls.recipe.defaults import (
    EIGHT_BIT_FROM,
    checkpoints_activations,
    eval_batch_tokens,
    micro_batch_tokens,
    selection_metric,
    wants_8bit_optimizer,
)
from llmcls.recipe.load import load_recipe


@pytest.mark.parametrize("given, expected", [("null", 8 * 64), ("auto", 8 * 64), ("99", 99)])
def test_a_training_pass_holds_a_batch_of_full_texts_unless_a_number_is_given(write_recipe, given, expected) -> None:
    recipe = load_recipe(write_recipe(), [f"micro_batch_tokens={given}"])
    assert micro_batch_tokens(recipe) == expected


def test_an_evaluation_pass_holds_four_times_as_much_or_what_is_given(write_recipe) -> None:
    path = write_recipe()
    assert eval_batch_tokens(load_recipe(path)) == 4 * 8 * 64
    assert eval_batch_tokens(load_recipe(path, ["micro_batch_tokens=99"])) == 4 * 99
    assert eval_batch_tokens(load_recipe(path, ["eval_batch_size=3"])) == 3 * 64


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([], False),
        (["use_4bit=true"], True),
        (["use_4bit=true", "gradient_checkpointing=false"], False),
        (["gradient_checkpointing=true"], True),
    ],
)
def test_activations_are_recomputed_for_4_bit_models_or_as_the_recipe_says(write_recipe, overrides, expected) -> None:
    assert checkpoints_activations(load_recipe(write_recipe(), overrides)) is expected


@pytest.mark.parametrize(
    "overrides, trained, expected",
    [
        (["use_4bit=true"], EIGHT_BIT_FROM, True),
        (["use_4bit=true"], EIGHT_BIT_FROM - 1, False),
        (["use_4bit=true", "optim_8bit_when_4bit=false"], EIGHT_BIT_FROM, False),
        ([], EIGHT_BIT_FROM, False),
    ],
)
def test_eight_bit_adamw_is_for_4_bit_models_that_train_many_weights(
    write_recipe, overrides, trained, expected
) -> None:
    assert wants_8bit_optimizer(load_recipe(write_recipe(), overrides), trained) is expected


def test_the_metric_of_choice_depends_on_the_task_unless_the_recipe_names_one(write_recipe) -> None:
    path = write_recipe()
    assert selection_metric(load_recipe(path)) == "f1_micro"
    assert selection_metric(load_recipe(path, ["metric_for_best_model=f1_macro"])) == "f1_macro"
    binary = ["problem_type=binary_classification", "label_columns=[books]"]
    assert selection_metric(load_recipe(path, binary)) == "f1_positive"
    assert selection_metric(load_recipe(path, [*binary, "metric_for_best_model=f1_micro"])) == "f1_micro"
