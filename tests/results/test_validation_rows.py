from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from accelerate import PartialState

from llmcls.common.user_error import UserError
from llmcls.evaluation.baselines import read_splits
from llmcls.recipe.load import load_recipe
from llmcls.results.error_analysis import read_texts
from llmcls.results.run_folder import ExperimentFolder
from llmcls.results.validation_rows import store_validation_rows
from llmcls.training.inputs import load_inputs
from tests.helpers import read_json, read_lines, read_rows, train, write_csv


def test_all_runs_and_commands_see_the_same_validation_rows(write_recipe, products: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    shutil.copy(products / "train.csv", path)
    recipe = write_recipe(
        data__train_csv=str(path), data__val_csv=None, data__test_csv=None, data__validation_split=0.2,
        train__max_steps=1, train__num_train_epochs=1,
    )  # fmt: skip
    experiment = train(recipe)
    ids = read_json(experiment / "validation_rows.json")["ids"]
    assert len(ids) == pytest.approx(32, abs=3)
    assert [line["id"] for line in read_lines(experiment / "run_0" / "predictions_validation.jsonl")] == ids
    counts = {split: data["rows"] for split, data in read_json(experiment / "run_0" / "metrics.json")["data"].items()}
    assert counts == {"train": 160 - len(ids), "validation": len(ids)}
    # What is written after a training, by other commands, and the baselines.
    assert read_texts(load_recipe(recipe), "validation").ids == ids
    assert not set(read_texts(load_recipe(recipe), "train").ids) & set(ids)
    other = load_recipe(recipe, ["exp.seeds=[2,3]", "exp.run_name=other", "train.learning_rate=1e-5"])
    inputs = load_inputs(other, PartialState())
    assert inputs.validation_split is not None
    assert inputs.validation_split.ids() == ids
    texts, values = read_splits(other, inputs.labels)
    assert texts["validation"] == read_texts(other, "validation").texts
    assert (values["train"] == inputs.train_split.known_labels).all()
    # A sample of the training rows holds none of them.
    part = load_inputs(load_recipe(recipe, ["data.train_rows=50"]), PartialState()).train_split
    assert len(part) == 50
    assert not set(part.ids()) & set(ids)
    # The file changes: other rows would be held out, which no run of this experiment may do.
    write_csv(path, read_rows(path)[:100])
    changed = load_inputs(load_recipe(recipe), PartialState()).validation_split
    with pytest.raises(UserError, match=r"has changed since .* was trained: other rows would be held out"):
        store_validation_rows(ExperimentFolder(experiment), load_recipe(recipe), changed)
    shutil.rmtree(experiment / "run_0")
    store_validation_rows(ExperimentFolder(experiment), load_recipe(recipe), changed)
    assert read_json(experiment / "validation_rows.json")["ids"] == changed.ids()
