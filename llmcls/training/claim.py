"""Claiming folders: lock that of the experiment, and create that of a run, or verify that its run can be resumed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from llmcls.common.files import remove_partials, write_text
from llmcls.data.splits import Split
from llmcls.engine.agreement import entered_by_main, on_main
from llmcls.recipe.load import recipe_to_yaml
from llmcls.recipe.schema import Recipe
from llmcls.results.lock import locked
from llmcls.results.run_folder import (
    ExperimentFolder,
    RunFolder,
    conflict_with,
    recipe_of_run,
    refuse_conflict,
    require_no_links,
)
from llmcls.results.validation_rows import store_validation_rows


@contextmanager
def claimed_experiment(recipe: Recipe, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of a recipe's experiment. Collective.

    Raises
    ------
    UserError
        If another training uses the folder, or if it leads out of ``exp.output_root``.
    """
    path = ExperimentFolder.of(recipe).path
    require_no_links(Path(recipe.exp.output_root), path)
    with entered_by_main(accelerator, locked(ExperimentFolder(path).lock, str(path))):
        if accelerator.is_main_process:
            _remove_partials(path)
        yield


def _remove_partials(experiment: Path) -> None:
    """Remove what killed processes left; never through a link, which may lead elsewhere."""
    remove_partials(experiment)
    for run in experiment.glob("run_[0-9]*"):
        for folder in (run, run / "checkpoints"):
            if not run.is_symlink() and folder.is_dir() and not folder.is_symlink():
                remove_partials(folder, folders=True)


def claim_run_folder(folder: RunFolder, recipe: Recipe, seed: int, accelerator: Accelerator) -> None:
    """Create a run folder, or verify that the run in it can be resumed. Collective.

    Raises
    ------
    UserError
        If the folder holds the run of another recipe or seed, which the recipe may not overwrite, on every rank.
    """
    # The main process decides for all, because other machines may not see the folder yet.
    on_main(accelerator, lambda: refuse_conflict(folder, recipe, seed))
    if accelerator.is_main_process:
        _remove_conflicting(folder, recipe, seed)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.recipe, recipe_to_yaml(recipe_of_run(recipe, seed)))


def claim_validation_rows(
    experiment: ExperimentFolder, recipe: Recipe, validation: Split | None, accelerator: Accelerator
) -> None:
    """Store which rows are held out for validation, or verify that they are those of the runs there. Collective.

    Raises
    ------
    UserError
        If a run of the experiment was trained with other validation rows, on every rank.
    """
    on_main(accelerator, lambda: store_validation_rows(experiment, recipe, validation))


def _remove_conflicting(folder: RunFolder, recipe: Recipe, seed: int) -> None:
    """Remove the run of another recipe or seed, and what an earlier removal left.

    The run is renamed first, so that a removal that is cut short leaves no half of it under its name.
    """
    gone = folder.path.with_name(f".{folder.path.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    if conflict_with(folder, recipe, seed):
        os.replace(folder.path, gone)
        shutil.rmtree(gone, ignore_errors=True)
