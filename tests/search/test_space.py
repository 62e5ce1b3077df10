from __future__ import annotations

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.search.space import load_space


@pytest.fixture
def space_of(write_recipe, tmp_path: Path):
    def load(text: str):
        path = tmp_path / "space.yaml"
        path.write_text(text, encoding="utf-8")
        return load_space(path, str(write_recipe()), [])

    return load


def test_lists_and_ranges_become_distributions(space_of) -> None:
    space = space_of(
        "train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\n"
        "train.num_train_epochs: {low: 2, high: 6, step: 2}\n"
        "model.lora_target_modules: [[q_proj], [q_proj, v_proj]]\n"
    )
    assert space.distributions == {
        "train.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "train.num_train_epochs": IntDistribution(2, 6, step=2),
        "model.lora_target_modules": CategoricalDistribution(["[q_proj]", "[q_proj, v_proj]"]),
    }


def test_values_of_a_trial_are_overrides_that_the_recipe_reads_back(space_of, write_recipe) -> None:
    space = space_of(
        "learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}\n"
        "lora_target_modules: [[q_proj], [q_proj, v_proj]]\n"
        "loss: [{train.loss: cross_entropy}, {train.loss: focal, train.focal_gamma: 1.5}]\n"
    )
    changed = space.overrides(
        {
            "learning_rate": 1.2345678901234567e-05,
            "lora_target_modules": "[q_proj, v_proj]",
            "loss": "{train.loss: focal, train.focal_gamma: 1.5}",
        }
    )
    recipe = load_recipe(write_recipe(), changed)
    assert recipe.train.learning_rate == 1.2345678901234567e-05
    assert recipe.model.lora_target_modules == ["q_proj", "v_proj"]
    assert (recipe.train.loss, recipe.train.focal_gamma) == ("focal", 1.5)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "a space has lines such as"),
        ("train.learning_rat: [1.0e-4]", "space.yaml: train.learning_rat is not a key; did you mean learning_rate"),
        ("train.learning_rate: 1.0e-4", "is 0.0001; give a list of values, or a range"),
        ("train.learning_rate: {low: 1.0e-3, high: 1.0e-4}", "low must be below high"),
        ("train.learning_rate: {low: 0.0, high: 1.0e-4, log: true}", "with log: true, low is above 0"),
        ("train.learning_rate: {low: a, high: 1.0e-4}", "low, high and step must be numbers"),
        ("train.learning_rate: {low: 1.0e-5, high: 1.0e-4, steps: 2}", "give a list of values, or a range"),
        ("model.lora_r: [4, four]", "lora_r"),
        ("train.num_train_epochs: {low: 0, high: 4}", "num_train_epochs"),
        ("exp.seeds: [[1], [2]]", "a search cannot change exp.seeds; set it in the recipe"),
        ("metric: [{metric_for_best_model: f1_macro}]", "a search cannot change train.metric_for_best_model"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_is_trained(space_of, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        space_of(text)
