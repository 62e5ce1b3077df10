"""The ids of the validation rows that an experiment holds out of its training file, stored beside its runs."""

from __future__ import annotations

from llmcls.common.files import read_json, write_json
from llmcls.common.user_error import UserError
from llmcls.data.splits import Split
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder


def store_validation_rows(experiment: ExperimentFolder, recipe: Recipe, validation: Split | None) -> None:
    """Store the ids of the held-out rows, or verify that they are those of the runs that are there.

    Without effect if the recipe holds no rows out.

    Parameters
    ----------
    experiment : ExperimentFolder
    recipe : Recipe
    validation : Split, optional

    Raises
    ------
    UserError
        If a run of the experiment was trained with other validation rows, because the training file has changed.
    """
    data = recipe.data
    if data.validation_split is None or validation is None:
        return
    path, ids = experiment.validation_rows, validation.ids()
    trained = any(any(experiment.path.glob(f"run_*/{name}")) for name in ("metrics.json", "checkpoints/*"))
    if trained and path.is_file() and read_json(path)["ids"] != ids:
        raise UserError(
            f"{data.train_csv} has changed since {experiment.path} was trained: other rows would be held out for "
            "validation; restore the file, or set exp.run_name to begin a new experiment"
        )
    stored = {"file": data.train_csv, "share": data.validation_split, "seed": data.validation_split_seed, "ids": ids}
    write_json(path, stored)
