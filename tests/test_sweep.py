from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmcls.common.user_error import UserError
from llmcls.recipe.grid import load_grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import ExperimentFolder
from llmcls.results.sweep_summary import write_sweep_summary
from llmcls.sweep import main


@pytest.fixture
def write_grid(write_recipe, tmp_path: Path) -> Any:
    values = {
        "recipe": str(write_recipe()), "profile": "accel_configs/cpu.yaml", "seeds": [1, 2],
        "grid": {"train.learning_rate": [1e-4, 2e-4], "model.lora_target_modules": [["q_proj"], ["all-linear"]]},
    }  # fmt: skip

    def write(**changes: Any) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


def test_every_combination_has_every_seed_and_a_folder_of_its_own(write_grid, capsys) -> None:
    path = write_grid(overrides=["num_train_epochs=1"], at_once=3, sbatch=["--time=1"])
    grid = load_grid(path)
    tasks = tasks_of(grid)
    recipes = [load_recipe(grid.recipe, task.overrides) for task in tasks]
    assert len({ExperimentFolder.of(r) for r in recipes}) == len(tasks) == 8
    seen = {(r.train.learning_rate, tuple(r.model.lora_target_modules), *r.exp.seeds) for r in recipes}
    assert seen == {(lr, (m,), s) for lr in (1e-4, 2e-4) for m in ("q_proj", "all-linear") for s in (1, 2)}
    assert all(r.train.num_train_epochs == 1 for r in recipes)
    main(["count", str(path)])
    main(["sbatch", str(path)])
    main(["task", str(path), "7"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["8", "--time=1", "--array=0-7%3"]
    assert printed[3:] == [grid.recipe, grid.profile, *tasks[7].overrides]


def test_without_options_nothing_is_printed(write_grid, capsys) -> None:
    main(["sbatch", str(write_grid())])
    assert capsys.readouterr().out == ""


def test_the_table_ranks_by_validation_and_names_what_is_missing(write_grid) -> None:
    grid = load_grid(write_grid(grid={"train.learning_rate": [1e-4, 2e-4]}))
    for task, validation, test in zip(tasks_of(grid), (0.5, 0.7, 0.8, None), (0.9, 0.9, 0.1, None), strict=True):
        folder = ExperimentFolder.of(load_recipe(grid.recipe, task.overrides)).path / "run_0"
        folder.mkdir(parents=True)
        if validation is not None:
            found = {"validation": {"f1_micro": validation}, "test": {"f1_micro": test}}
            (folder / "metrics.json").write_text(json.dumps(found))
    rows = [line for line in write_sweep_summary(grid).splitlines() if line.startswith("| 0.000")]
    assert rows == [
        "| 0.0002 | 1 | 0.8000 | 0.1000 | seed 2 |",
        "| 0.0001 | 1, 2 | 0.6000 ± 0.1414 | 0.9000 ± 0.0000 |  |",
    ]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"gird": {}}, "gird is no key of a grid; known are recipe, profile"),
        ({"seeds": []}, "seeds is missing"),
        ({"seeds": 3}, "seeds is 3; it must be a list"),
        ({"grid": {"train.learning_rate": 1e-4}}, "grid.train.learning_rate is 0.0001; give a list"),
    ],
)
def test_a_mistake_in_the_grid_is_one_sentence(write_grid, changes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_grid(write_grid(**changes))


def test_a_key_that_no_recipe_has_stops_the_sweep_before_it_is_queued(write_grid) -> None:
    with pytest.raises(UserError, match="learning_rat"):
        main(["count", str(write_grid(grid={"train.learning_rat": [1]}))])
    with pytest.raises(UserError, match="has the tasks 0 to 7, not 8"):
        main(["task", str(write_grid()), "8"])
