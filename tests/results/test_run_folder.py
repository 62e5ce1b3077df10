from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llmcls.common.files import write_text
from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe, recipe_to_yaml
from llmcls.results.run_folder import ExperimentFolder, RunFolder, recipe_of_run, refuse_conflict
from tests.helpers import refusal, run_module


def test_an_experiment_is_named_after_model_dataset_and_run(write_recipe, tmp_path: Path) -> None:
    root, path = tmp_path / "outputs", write_recipe()
    assert ExperimentFolder.of(load_recipe(path)).path == root / "tiny-llama" / "products"
    hub = load_recipe(path, ["model_name=meta-llama/Llama-3.2-1B", "run_name=lr-1"])
    assert ExperimentFolder.of(hub).path == root / "meta-llama__Llama-3.2-1B" / "products" / "lr-1"


def test_a_local_model_is_named_by_its_folder_from_anywhere(write_recipe, tiny_llama: Path, monkeypatch) -> None:
    monkeypatch.chdir(tiny_llama)
    recipe = load_recipe(write_recipe(), ["model_name=."])
    assert ExperimentFolder.of(recipe).path.parts[-2:] == ("tiny-llama", "products")


@pytest.mark.parametrize("name", ["/", "..\\..\\x", "a\nb", "x" * 300, "a\x00b"], ids=ascii)
def test_a_model_name_that_is_no_folder_name_is_refused(write_recipe, capsys, name: str) -> None:
    assert "model.model_name is " in refusal(capsys, "folder", write_recipe(model__model_name=name))


def test_seeds_are_numbered_runs_of_an_experiment(tmp_path: Path) -> None:
    experiment = ExperimentFolder(tmp_path)
    run = experiment.run(3)
    assert run == RunFolder(tmp_path / "run_3")
    assert run.experiment == experiment


def test_every_path_is_inside_its_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    paths = [
        run.recipe, run.environment, run.log, run.metrics, run.metrics_log, run.thresholds, run.calibration, run.report,
        run.tensorboard, run.model, run.model_recipe, run.labels, run.last_checkpoint, run.best_checkpoint(),
        run.best_checkpoint(2), run.predictions("test"), run.predictions("validation"), run.errors("test"),
    ]  # fmt: skip
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) for path in paths)
    assert run.best_checkpoint(2).name == "best_2"


def test_a_run_is_finished_if_it_has_metrics_and_a_model(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for path in (run.recipe, run.model_recipe, run.labels, run.metrics):
        assert not run.finished
        write_text(path, "{}")
    assert run.finished


def test_predicted_splits_end_with_test(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.predicted_splits() == []
    for split in ("test", "validation"):
        run.predictions(split).touch()
    assert run.predicted_splits() == ["validation", "test"]


def test_a_run_of_another_recipe_or_seed_is_not_replaced(write_recipe, tmp_path: Path) -> None:
    run, path = RunFolder(tmp_path / "run_0"), write_recipe()
    refuse_conflict(run, load_recipe(path), 1)
    write_text(run.recipe, recipe_to_yaml(recipe_of_run(load_recipe(path), 1)))
    run.last_checkpoint.mkdir(parents=True)
    refuse_conflict(run, load_recipe(path), 1)
    refuse_conflict(run, load_recipe(path, ["logging_steps=7", "exp.seeds=[1, 2]"]), 1)
    with pytest.raises(UserError, match=r"run_0 holds .*train\.learning_rate was 0\.002, is now 0\.005; set exp\.run_"):
        refuse_conflict(run, load_recipe(path, ["learning_rate=5e-3"]), 1)
    with pytest.raises(UserError, match=r"data\.max_length was 64, is now 32 \(and 1 more\)"):
        refuse_conflict(run, load_recipe(path, ["learning_rate=5e-3", "max_length=32"]), 1)
    with pytest.raises(UserError, match=r"exp\.seeds was \[1\], is now \[2\]"):
        refuse_conflict(run, load_recipe(path), 2)
    refuse_conflict(run, load_recipe(path, ["learning_rate=5e-3", "overwrite=true"]), 2)


def test_the_recipe_of_a_run_has_one_seed_and_may_not_overwrite(write_recipe) -> None:
    recipe = load_recipe(write_recipe(), ["exp.seeds=[1, 2]", "overwrite=true"])
    saved = yaml.safe_load(recipe_to_yaml(recipe_of_run(recipe, 2)))
    assert saved["exp"]["seeds"] == [2]
    assert saved["exp"]["overwrite"] is False
    assert recipe.exp.seeds == [1, 2]


def test_job_scripts_get_a_folder_without_waiting_for_torch(tmp_path: Path) -> None:
    code = "import sys, llmcls.folder, llmcls.sweep; sys.exit('torch' in sys.modules)"
    (tmp_path / "probe.py").write_text(code)
    assert run_module("probe", cwd=tmp_path).returncode == 0
