from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.evaluation.baseline_store import Baseline
from llmcls.recipe.grid import Grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.results.curve import curve_of, write_curve
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.curve_plan import CurveRequest, curve_grid
from tests.helpers import read_json
from tests.results.helpers import random_case, write_run

SIZES = [20, 40, 80]


@pytest.fixture
def grid(write_recipe) -> Grid:
    path = write_recipe()
    return curve_grid(CurveRequest(load_recipe(path), [], "cpu.yaml", SIZES, [1, 2], 10, "curve"))


def finish(grid: Grid, *names: str) -> None:
    """Write the runs of these names: the more rows, the better."""
    for task in tasks_of(grid):
        recipe = load_recipe(grid.recipe, task.overrides)
        if recipe.exp.run_name not in names:
            continue
        experiment = ExperimentFolder.of(recipe)
        noise = 4.0 / np.sqrt(float(recipe.data.train_rows or 0))
        case = random_case(task.seed, noise=noise)
        write_run(experiment.run(0), recipe, {"validation": case, "test": case}, seed=task.seed)
        coin = np.random.default_rng(0).random((200, 2)) < 0.5
        found = {"tfidf_linear": Baseline({"test": {}}, {"test": coin})}
        experiment.baselines.write("texts", "key", found)


def names(*sizes: int) -> list[str]:
    return [f"curve-{size}_seed-{seed}" for size in sizes for seed in (1, 2)]


def test_model_and_baselines_at_each_size_with_the_advice(grid: Grid, tmp_path: Path) -> None:
    finish(grid, *names(*SIZES))
    curve = curve_of(grid, worth=0.01)
    assert (curve.split, curve.metric, curve.sizes, curve.missing) == ("test", "f1_micro", SIZES, [])
    assert set(curve.points) == {"model", "tfidf_linear"}, "no run has a probe"
    means = [point.value for point in curve.points["model"]]
    assert means == sorted(means)
    run = ExperimentFolder.of(load_recipe(grid.recipe, tasks_of(grid)[0].overrides)).run(0)
    assert curve.seeds["model"][0][0] == pytest.approx(read_json(run.metrics)["test"]["f1_micro"])
    assert means[0] == pytest.approx(np.mean(curve.seeds["model"][0]))
    assert "labels: twice as many (160 rows)" in curve.sentence
    assert "With 80 rows: fine-tuned" in curve.sentence
    text = write_curve(curve, tmp_path, "curve")
    assert text.splitlines()[2] == curve.sentence
    assert len([line for line in text.splitlines() if line.startswith(("| 20 |", "| 40 |", "| 80 |"))]) == 3
    saved = read_json(tmp_path / "curve.json")
    assert saved["points"]["model"][2]["value"] == pytest.approx(means[2])
    assert saved["forecast"]["rows"] == 160
    assert (tmp_path / "curve.md").read_text(encoding="utf-8") == text


def test_what_is_not_finished_is_named_and_the_rest_is_drawn(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of this learning curve is finished"):
        curve_of(grid, 0.01)
    finish(grid, *names(20))
    curve = curve_of(grid, 0.01)
    assert curve.forecast is None
    assert "give two sizes or more" in curve.sentence
    assert curve.missing == names(40, 80)
    assert "Not finished: curve-40_seed-1, " in write_curve(curve, tmp_path, "curve")
