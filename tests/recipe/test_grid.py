from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmcls.common.user_error import UserError
from llmcls.recipe.grid import load_grid, tasks_of
from llmcls.recipe.load import load_recipe
from tests.helpers import ROOT

WriteGrid = Callable[..., Path]


def test_every_combination_has_every_seed(write_grid: WriteGrid) -> None:
    grid = load_grid(write_grid(overrides=["num_train_epochs=1"], at_once=3, sbatch=["--time=1"]))
    tasks = tasks_of(grid)
    recipes = [load_recipe(grid.recipe, task.overrides) for task in tasks]
    seen = [(r.train.learning_rate, r.model.lora_target_modules[0], *r.exp.seeds) for r in recipes]
    assert seen == [(lr, m, s) for lr in (1e-4, 2e-4) for m in ("q_proj", "all-linear") for s in (1, 2)]
    assert all(r.train.num_train_epochs == 1 for r in recipes)
    assert [task.seed for task in tasks] == [1, 2] * 4
    assert tasks[0].values == {"train.learning_rate": 1e-4, "model.lora_target_modules": ["q_proj"]}


def test_run_names_are_unique_and_say_what_was_tried(write_grid: WriteGrid) -> None:
    grid = load_grid(write_grid())
    recipes = [load_recipe(grid.recipe, task.overrides) for task in tasks_of(grid)]
    assert {recipe.train.tracking_group for recipe in recipes} == {"sweep-grid"}
    names = [recipe.exp.run_name for recipe in recipes]
    assert len(set(names)) == len(names) == 8
    assert names[0] == "learning_rate-0.0001_lora_target_modules--q_proj-_seed-1"


def test_keys_that_change_together_and_the_seed_in_an_override(write_grid: WriteGrid) -> None:
    cases = [{"data.train_rows": 20, "train.num_train_epochs": 8}, {"data.train_rows": 40, "num_train_epochs": 4}]
    grid = load_grid(write_grid(grid={"curve": cases}, overrides=["data.train_rows_seed={seed}"]))
    recipes = [load_recipe(grid.recipe, task.overrides) for task in tasks_of(grid)]
    seen = [(r.data.train_rows, r.train.num_train_epochs, r.data.train_rows_seed, *r.exp.seeds) for r in recipes]
    assert seen == [(20, 8, 1, 1), (20, 8, 2, 2), (40, 4, 1, 1), (40, 4, 2, 2)]
    assert [r.exp.run_name for r in recipes][:2] == ["curve-20_seed-1", "curve-20_seed-2"]
    with pytest.raises(UserError, match=r"grid\.curve is \[\{\}\]"):
        load_grid(write_grid(grid={"curve": [{}]}))


def test_the_grid_of_the_project_loads() -> None:
    grid = load_grid(ROOT / "slurm" / "grid.yaml")
    assert (ROOT / grid.recipe).is_file()
    assert (ROOT / grid.profile).is_file()
    assert len(tasks_of(grid)) > 1


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"gird": {}}, "gird is not a key of a grid.*recipe, profile"),
        ({"seeds": []}, "seeds is missing"),
        ({"seeds": 3}, "seeds is 3; it must be a list"),
        ({"grid": {"train.learning_rate": 1e-4}}, "grid.train.learning_rate is 0.0001; "),
        ({"grid": {"train.learning_rate": []}}, r"grid.train.learning_rate is \[\]; "),
        ({1: 2, "b": 3, None: 4}, "is not a key of a grid"),
        ({"seeds": ["a"]}, "seeds is 'a'; it must be a whole number"),
        ({"profile": ["cpu"]}, r"profile is \['cpu'\]; it must be text"),
        ({"at_once": "many"}, "at_once is 'many'; it must be a whole number"),
        ({"grid": {f"k{i}": list(range(100)) for i in range(4)}}, "the grid has more than 100000 runs"),
    ],
)
def test_an_error_in_the_grid_is_one_sentence(write_grid: WriteGrid, changes: dict[Any, Any], sentence: str) -> None:
    path = write_grid()
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))
    with pytest.raises(UserError, match=sentence) as error:
        load_grid(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("content", ["a: [1", "just text", "- a list"])
def test_a_file_that_is_no_grid_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"grid\.yaml"):
        load_grid(path)
    with pytest.raises(UserError, match=r"none\.yaml cannot be read as a grid"):
        load_grid(tmp_path / "none.yaml")


def test_values_that_differ_in_punctuation_only_get_different_run_names(write_grid: WriteGrid) -> None:
    grid = load_grid(write_grid(seeds=[1], grid={"data.text_separator": ["; ", "/ "]}))
    names = [task.overrides[-1] for task in tasks_of(grid)]
    assert len(set(names)) == 2


def test_a_run_name_of_many_values_is_shortened_and_stays_unique(write_grid: WriteGrid) -> None:
    values = [["q_proj"] * 50, ["q_proj"] * 51]
    grid = load_grid(write_grid(seeds=[1], grid={"model.lora_target_modules": values}))
    names = {load_recipe(grid.recipe, task.overrides).exp.run_name for task in tasks_of(grid)}
    assert len(names) == 2
