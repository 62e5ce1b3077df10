from __future__ import annotations

import copy

from llmcls.recipe.differences import differing_keys, same_but_for_seeds
from llmcls.recipe.load import load_recipe, recipe_to_dict


def test_keys_that_change_the_model_are_named_in_the_order_of_the_schema(write_recipe) -> None:
    path = write_recipe()
    saved = recipe_to_dict(load_recipe(path))
    assert differing_keys(saved, load_recipe(path)) == []
    other = load_recipe(path, ["learning_rate=0.1", "data.max_length=32", "model.pooling=mean"])
    assert differing_keys(saved, other) == ["data.max_length", "model.pooling", "train.learning_rate"]


def test_keys_that_change_only_what_is_written_do_not_count(write_recipe) -> None:
    path = write_recipe()
    saved = recipe_to_dict(load_recipe(path))
    other = load_recipe(path, ["report_to=[wandb]", "logging_steps=7", "train_metrics_rows=0", "save_total_limit=3"])
    assert differing_keys(saved, other) == []
    assert differing_keys(saved, load_recipe(path, ["output_root=elsewhere"])) == []


def test_a_recipe_of_an_older_version_may_lack_keys(write_recipe) -> None:
    recipe = load_recipe(write_recipe())
    saved = recipe_to_dict(recipe)
    del saved["train"]["focal_gamma"]
    assert differing_keys(saved, recipe) == []


def test_recipes_are_the_same_if_only_seeds_and_folders_differ(write_recipe) -> None:
    one = recipe_to_dict(load_recipe(write_recipe()))
    seeds = copy.deepcopy(one)
    seeds["exp"] |= {"seeds": [2], "run_name": "other"}
    assert same_but_for_seeds([one, seeds])
    seeds["train"]["learning_rate"] = 0.1
    assert not same_but_for_seeds([one, seeds])
