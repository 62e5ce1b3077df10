from __future__ import annotations

from pathlib import Path

from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.training.sink import LONGEST_TAG, TrackedRun


def test_a_run_belongs_to_its_experiment_unless_the_recipe_names_a_group(write_recipe, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "model" / "data" / "run_1")
    run = TrackedRun(folder, load_recipe(write_recipe()), {}, 0)
    assert (run.name, run.group, run.job_type) == ("model/data/run_1", "model/data", "train")
    named = load_recipe(write_recipe(exp__run_name="long"))
    assert (
        TrackedRun(RunFolder(tmp_path / "model" / "data" / "long" / "run_0"), named, {}, 0).group == "model/data/long"
    )
    trial = load_recipe(write_recipe(train__tracking_group="sweep-grid", train__tracking_tags=["t" * 100]))
    run = TrackedRun(folder, trial, {}, 0)
    assert (run.group, run.job_type) == ("sweep-grid", "trial")
    assert run.tags[-1] == "t" * LONGEST_TAG


def test_only_a_resumed_run_keeps_its_id(write_recipe, tmp_path: Path) -> None:
    new = TrackedRun(RunFolder(tmp_path), load_recipe(write_recipe()), {"a": {"b": 1, "c": None}}, 0)
    new.store_id("wandb", "one")
    new.store_id("mlflow", "two")
    resumed = TrackedRun(RunFolder(tmp_path), load_recipe(write_recipe()), {}, 5)
    assert (resumed.stored_id("wandb"), resumed.stored_id("mlflow")) == ("one", "two")
    assert new.stored_id("wandb") is None
    assert new.parameters == {"a.b": "1"}
