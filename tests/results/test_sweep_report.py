from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.files import write_json
from llmcls.recipe.grid import load_grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.report import main
from llmcls.results.run_folder import ExperimentFolder
from llmcls.results.sweep_report import write_sweep_report
from llmcls.results.sweep_summary import write_sweep_summary
from tests.helpers import read_json
from tests.results.helpers import random_case, write_run
from tests.results.page import read_page


def test_combinations_are_ranked_and_the_lead_is_judged(write_grid, tmp_path: Path, capsys) -> None:
    grid = load_grid(write_grid(grid={"train.learning_rate": [1e-4, 2e-4]}))
    for task in tasks_of(grid):
        recipe = load_recipe(grid.recipe, task.overrides)
        noise = 0.3 if recipe.train.learning_rate == 2e-4 else 0.8
        case = random_case(task.seed, noise=noise)
        write_run(ExperimentFolder.of(recipe).run(0), recipe, {"validation": case, "test": case}, seed=task.seed)
    write_sweep_summary(grid)
    main([grid.source])
    assert f"report of the sweep: {tmp_path / 'outputs' / 'sweep-grid.html'}" in capsys.readouterr().out
    root = read_page(tmp_path / "outputs" / "sweep-grid.html")
    verdict = root.one("p", class_="verdict").text
    assert verdict.startswith("learning_rate 0.0002 leads with micro-F1 0.")
    assert "which is more than noise" in verdict
    first, second = list(root.one("table").all("tr"))[1:]
    saved = read_json(tmp_path / "outputs" / "sweep-grid.json")["combinations"]
    for row, entry in zip((first, second), saved, strict=True):
        assert row.one(data_of="mean").text == f"{sum(entry['validation']) / 2:.3f}"
        assert len(list(row.all("span", class_="seed"))) == 2


@pytest.mark.parametrize(("finished", "sentence"), [(0, "No run is finished yet."), (1, "learning_rate 0.0001 leads")])
def test_an_unfinished_sweep_says_what_is_missing(write_grid, finished: int, sentence: str) -> None:
    grid = load_grid(write_grid(grid={"train.learning_rate": [1e-4, 2e-4]}))
    for task in tasks_of(grid)[:finished]:
        run = ExperimentFolder.of(load_recipe(grid.recipe, task.overrides)).run(0)
        write_json(run.metrics, {"validation": {"f1_micro": 0.5}})
    root = read_page(write_sweep_report(grid))
    assert root.one("p", class_="verdict").text.startswith(sentence)
    assert f"{4 - finished} not finished" in root.one("ul", class_="facts").text
    assert "missing" in root.one("table").text
