from __future__ import annotations

from llmcls.data.steps import global_batch_size, steps_per_epoch
from llmcls.recipe.load import load_recipe
from tests.conftest import WriteRecipe


def test_a_step_has_the_rows_of_all_ranks(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(train__batch_size=3, train__gradient_accumulation_steps=4))
    assert [global_batch_size(recipe, ranks) for ranks in (1, 2)] == [12, 24]
    assert [steps_per_epoch(rows, 12) for rows in (1, 12, 13)] == [1, 1, 2]
