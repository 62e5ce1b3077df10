from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.grid import Grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.training.curve_plan import CurveRequest, curve_grid, parse_sizes
from llmcls.training.setup import total_steps


def grid_of(path: Path, *overrides: str, min_steps: int = 30) -> Grid:
    recipe = load_recipe(path, list(overrides))
    return curve_grid(CurveRequest(recipe, list(overrides), "cpu.yaml", [16, 160], [1, 2], min_steps, "curve"))


def test_small_samples_take_as_many_steps_as_asked_for(write_recipe) -> None:
    grid = grid_of(write_recipe(train__num_train_epochs=4))
    recipes = [load_recipe(grid.recipe, task.overrides) for task in tasks_of(grid)]
    assert [r.data.train_rows for r in recipes] == [16, 16, 160, 160]
    assert [total_steps(r, int(r.data.train_rows or 0), 16) for r in recipes] == [30, 30, 40, 40]
    assert [r.train.num_train_epochs for r in recipes] == [30, 30, 4, 4]
    assert [r.train.eval_steps for r in recipes] == [5, 5, 10, 10]
    assert [r.data.train_rows_seed for r in recipes] == [1, 2, 1, 2]
    assert all(r.exp.baselines for r in recipes)


def test_the_recipe_keeps_its_limits(write_recipe) -> None:
    grid = grid_of(write_recipe(), "max_steps=12", "eval_steps=3")
    recipes = [load_recipe(grid.recipe, task.overrides) for task in tasks_of(grid)]
    assert {total_steps(r, int(r.data.train_rows or 0), 16) for r in recipes} == {12}
    assert {r.train.eval_steps for r in recipes} == {3}


@pytest.mark.parametrize("text", ["0", "161", "many", "", "50,,100", "1.5"])
def test_sizes_that_the_file_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="give numbers from 1 to 160"):
        parse_sizes(text, 160)
