from __future__ import annotations

import pytest

from llmcls.common.files import write_json
from llmcls.recipe.grid import Grid, load_grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import ExperimentFolder
from llmcls.results.sweep_summary import write_sweep_summary
from tests.helpers import read_json


def finish(grid: Grid, values: list[float | None], metric: str = "f1_micro", validation: bool = True) -> None:
    """Write the metrics of each task; None for one that did not finish."""
    for task, value in zip(tasks_of(grid), values, strict=True):
        run = ExperimentFolder.of(load_recipe(grid.recipe, task.overrides)).run(0)
        if value is not None:
            splits = {"test": {metric: 1 - value}} | ({"validation": {metric: value}} if validation else {})
            write_json(run.metrics, splits)


def table_of(grid: Grid) -> list[str]:
    return [line for line in write_sweep_summary(grid).splitlines() if line.startswith("| 0.000")]


def test_the_table_is_ranked_by_validation_and_names_what_is_missing(write_grid) -> None:
    grid = load_grid(write_grid(grid={"train.learning_rate": [1e-4, 2e-4]}))
    finish(grid, [0.5, 0.7, 0.8, None])
    assert table_of(grid) == [
        "| 0.0002 | 1 | 0.8000 | 0.2000 | seed 2 |",
        "| 0.0001 | 1, 2 | 0.6000 ± 0.1414 | 0.4000 ± 0.1414 |  |",
    ]


@pytest.mark.parametrize("metric, first", [("f1_macro", "0.0002"), ("loss", "0.0001")])
def test_the_metric_of_the_recipe_decides_what_is_better(write_grid, metric: str, first: str) -> None:
    grid = {"train.learning_rate": [1e-4, 2e-4]}
    grid = load_grid(write_grid(grid=grid, overrides=[f"metric_for_best_model={metric}"]))
    finish(grid, [0.5, 0.5, 0.8, 0.8], metric)
    assert table_of(grid)[0].startswith(f"| {first} ")


def test_without_validation_test_decides_and_combinations_without_a_run_are_last(write_grid) -> None:
    grid = load_grid(write_grid(grid={"train.learning_rate": [1e-4, 2e-4, 3e-4]}))
    finish(grid, [None, None, 0.9, 0.9, 0.2, 0.2], validation=False)
    assert [line.split(" | ")[0] for line in table_of(grid)] == ["| 0.0003", "| 0.0002", "| 0.0001"]
    assert table_of(grid)[2].endswith("| seed 1, seed 2 |")


def test_the_table_is_written_to_the_output_root(write_grid, tmp_path) -> None:
    grid = load_grid(write_grid(grid={"train.learning_rate": [1e-4]}))
    finish(grid, [0.5, 0.7])
    text = write_sweep_summary(grid)
    assert (tmp_path / "outputs" / "sweep-grid.md").read_text(encoding="utf-8") == text
    saved = read_json(tmp_path / "outputs" / "sweep-grid.json")
    assert saved["metric"] == "f1_micro"
    assert saved["combinations"][0]["validation"] == [0.5, 0.7]


def test_keys_that_change_together_are_shown_with_their_names(write_grid) -> None:
    cases = [{"data.train_rows": 20, "train.num_train_epochs": 8}]
    grid = load_grid(write_grid(grid={"curve": cases}))
    finish(grid, [0.5, 0.7])
    assert "| train_rows 20, num_train_epochs 8 | 1, 2 |" in write_sweep_summary(grid)
