"""Claiming a run folder: create it, or verify that the run in it can be resumed."""

from __future__ import annotations

import shutil

from accelerate import Accelerator

from llmcls.common.files import write_text
from llmcls.common.user_error import UserError
from llmcls.engine.agreement import from_main
from llmcls.recipe.load import recipe_to_yaml
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import RunFolder, recipe_of_run, refuse_conflict


def claim_run_folder(folder: RunFolder, recipe: Recipe, seed: int, accelerator: Accelerator) -> None:
    """Create a run folder, or verify that the run in it can be resumed. Collective.

    Raises
    ------
    UserError
        If the folder holds the run of another recipe or seed, on every rank.
    """
    conflict = None
    if accelerator.is_main_process:
        try:
            refuse_conflict(folder, recipe, seed)
        except UserError as error:
            conflict = str(error)
    # The main process decides for all, because other machines may not see the folder yet.
    conflict = from_main(accelerator, conflict)
    if conflict is not None:
        raise UserError(conflict)
    if accelerator.is_main_process:
        if recipe.exp.overwrite:
            shutil.rmtree(folder.path, ignore_errors=True)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.recipe, recipe_to_yaml(recipe_of_run(recipe, seed)))
