from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.claim import claim_run_folder


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


def test_another_recipe_is_refused_unless_it_may_overwrite(write_recipe: Any, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe())
    run = ExperimentFolder.of(recipe).run(0)
    claim_run_folder(run, recipe, 1, Accelerator(cpu=True))
    kept = run.path / "kept.txt"
    kept.write_text("written before")
    other = replace(recipe, train=replace(recipe.train, learning_rate=5e-3))
    with pytest.raises(UserError, match=r"train\.learning_rate was 0\.002, is now 0\.005"):
        claim_run_folder(run, other, 1, Accelerator(cpu=True))
    assert kept.exists()
    claim_run_folder(run, replace(other, exp=replace(other.exp, overwrite=True)), 1, Accelerator(cpu=True))
    assert not kept.exists()
    assert load_recipe(run.recipe).train.learning_rate == 5e-3
