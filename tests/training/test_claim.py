from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe, recipe_to_yaml
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.claim import claim_run_folder, claimed_experiment


def test_a_new_folder_gets_the_recipe_with_this_seed_only(write_recipe: Any) -> None:
    recipe = load_recipe(write_recipe(exp__seeds=[1, 2], exp__overwrite=True))
    run = ExperimentFolder.of(recipe).run(1)
    claim_run_folder(run, recipe, 2, Accelerator(cpu=True))
    saved = load_recipe(run.recipe)
    assert saved.exp.seeds == [2]
    assert saved.exp.overwrite is False
    assert saved.train == recipe.train


def test_the_same_recipe_may_claim_its_folder_again_and_nothing_is_lost(write_recipe: Any) -> None:
    recipe = load_recipe(write_recipe())
    run = ExperimentFolder.of(recipe).run(0)
    claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    kept = run.path / "kept.txt"
    kept.write_text("written before")
    claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    assert kept.read_text() == "written before"


def test_overwriting_keeps_an_interrupted_run_of_the_same_recipe(write_recipe: Any) -> None:
    recipe = load_recipe(write_recipe(exp__overwrite=True, train__report_to=[]))
    run = ExperimentFolder.of(recipe).run(0)
    claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    kept = run.path / "kept.txt"
    kept.write_text("written before")
    harmless = replace(recipe, train=replace(recipe.train, logging_steps=7))
    claim_run_folder(run, harmless, 1, Accelerator(cpu=True))
    assert kept.read_text() == "written before"


def test_a_folder_that_holds_no_run_is_never_removed(write_recipe: Any) -> None:
    recipe = load_recipe(write_recipe(exp__overwrite=True))
    run = ExperimentFolder.of(recipe).run(0)
    thesis = run.path / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("three years")
    with pytest.raises(UserError, match=r"run_0 is not empty, and holds no run; move its files away"):
        claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    assert thesis.read_text() == "three years"


@pytest.mark.parametrize("text", ["", "- 1", "data: {a: [", "exp: {seeds: [1]}", "exp: 3"])
def test_a_damaged_recipe_in_the_folder_is_one_sentence_and_nothing_is_removed(write_recipe: Any, text: str) -> None:
    recipe = load_recipe(write_recipe(exp__overwrite=True))
    run = ExperimentFolder.of(recipe).run(0)
    run.last_checkpoint.mkdir(parents=True)
    run.recipe.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml is damaged, .* move .*run_0 away"):
        claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    assert run.recipe.read_text() == text


def test_a_run_that_saved_nothing_is_in_nobodys_way(write_recipe: Any) -> None:
    recipe = load_recipe(write_recipe())
    run = ExperimentFolder.of(recipe).run(0)
    claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    other = replace(recipe, train=replace(recipe.train, learning_rate=5e-3))
    claim_run_folder(run, other, 1, Accelerator(cpu=True))
    assert load_recipe(run.recipe).train.learning_rate == 5e-3


def test_a_replacement_that_is_killed_leaves_no_mixture_of_two_runs(write_recipe: Any, monkeypatch: Any) -> None:
    recipe = load_recipe(write_recipe())
    run = ExperimentFolder.of(recipe).run(0)
    claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    run.metrics.write_text("{}")
    other = replace(recipe, train=replace(recipe.train, learning_rate=5e-3), exp=replace(recipe.exp, overwrite=True))

    def killed(path: Path, *_args: Any, **_options: Any) -> None:
        if Path(path).exists():
            (Path(path) / "recipe.yaml").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            claim_run_folder(run, other, 1, Accelerator(cpu=True))
    claim_run_folder(run, replace(other, exp=recipe.exp), 1, Accelerator(cpu=True))
    assert [path.name for path in run.path.iterdir()] == ["recipe.yaml"]
    assert [path.name for path in run.path.parent.iterdir()] == ["run_0"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
@pytest.mark.parametrize(
    "link",
    [
        "tiny-llama",
        "tiny-llama/products",
        "tiny-llama/products/run_0",
        "tiny-llama/products/run_0/logs",
        "tiny-llama/products/run_0/checkpoints/last",
    ],
)
def test_nothing_is_written_or_removed_through_a_link(write_recipe: Any, tmp_path: Path, link: str) -> None:
    recipe = load_recipe(write_recipe(exp__overwrite=True))
    run = ExperimentFolder.of(recipe).run(0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "recipe.yaml").write_text(recipe_to_yaml(replace(recipe, exp=replace(recipe.exp, seeds=[9]))))
    before = sorted(p.read_bytes() for p in elsewhere.rglob("*") if p.is_file())
    path = Path(recipe.exp.output_root) / link
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(UserError, match=r"is a link; .* remove the link, or set exp\.output_root"):
        claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    assert sorted(p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()) == before


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_the_output_root_itself_may_be_a_link(write_recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "scratch", target_is_directory=True)
    recipe = load_recipe(write_recipe())
    claim_run_folder(ExperimentFolder.of(recipe).run(0), recipe, 1, Accelerator(cpu=True))
    assert (tmp_path / "scratch/tiny-llama/products/run_0/recipe.yaml").is_file()


def test_another_recipe_is_refused_unless_it_may_overwrite(write_recipe: Any, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe())
    run = ExperimentFolder.of(recipe).run(0)
    claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    run.last_checkpoint.mkdir(parents=True)
    kept = run.path / "kept.txt"
    kept.write_text("written before")
    other = replace(recipe, train=replace(recipe.train, learning_rate=5e-3))
    with pytest.raises(UserError, match=r"train\.learning_rate was 0\.002, is now 0\.005"):
        claim_run_folder(run, other, 1, Accelerator(cpu=True))
    assert kept.exists()
    claim_run_folder(run, replace(other, exp=replace(other.exp, overwrite=True)), 1, Accelerator(cpu=True))
    assert not kept.exists()
    assert load_recipe(run.recipe).train.learning_rate == 5e-3


def test_what_killed_trainings_left_is_removed_but_not_through_a_link(write_recipe: Any, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe())
    experiment = ExperimentFolder.of(recipe)
    left = [experiment.run(0).path / "checkpoints" / "last.partial", experiment.run(0).path / "recipe.yaml.7.partial"]
    other = tmp_path / "elsewhere" / "mine.partial"
    for folder in (*left, other):
        folder.mkdir(parents=True)
    left[1].rmdir()
    left[1].write_text("half")
    experiment.run(1).path.symlink_to(other.parent)
    with claimed_experiment(recipe, Accelerator(cpu=True)):
        assert not any(path.exists() for path in left)
        assert other.exists()
