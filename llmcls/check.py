"""Check a recipe before training: ``python -m llmcls.check RECIPE [key=value ...]``.

Loads the recipe, reads and tokenizes the data (training then reads it from the cache), opens the configuration and the
tokenizer of the model, and prints what the data look like and what training will do, with the memory of a step and the
time of an epoch, what this machine has, and a verdict. Reports every error that can be found without training.
"""

from __future__ import annotations

import logging

from llmcls.common.command import add_recipe_arguments, begin_imports, command_parser, run_command

if __name__ == "__main__":
    # The imports below take seconds.
    begin_imports()

import torch
from accelerate import PartialState

from llmcls.common.logs import collected_warnings, configure_logging
from llmcls.common.user_error import UserError
from llmcls.model.cards import find_card
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder, conflict_with, refuse_conflict
from llmcls.training.data_preview import data_preview, data_problems
from llmcls.training.inputs import load_inputs
from llmcls.training.machine_preview import machine_preview
from llmcls.training.preview import preview

log = logging.getLogger("llmcls.check")


def main(argv: list[str] | None = None) -> None:
    """Check a recipe and print what training will do."""
    parser = command_parser("check", "Check a recipe, its data and its model, without training.")
    add_recipe_arguments(parser)
    parser.add_argument(
        "--card", help="estimate for this GPU, such as H100 or 'RTX 3060'; that of this machine if left out"
    )
    parser.add_argument("--price", type=float, help="price of an hour on the GPU, to estimate the cost of an epoch")
    arguments = parser.parse_intermixed_args(argv)
    card = find_card(arguments.card) if arguments.card else None
    if arguments.price is not None and card is None and not torch.cuda.is_available():
        raise UserError("--price needs a card; give --card NAME")
    configure_logging(main_process=True)
    with collected_warnings() as warned:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        _look_at_runs(recipe)
        inputs = load_inputs(recipe, PartialState(cpu=True))
        for line in data_preview(recipe, inputs):
            log.info("%s", line)
        for line in preview(recipe, inputs, card, arguments.price):
            log.info("%s", line)
        lines, problems = machine_preview(recipe)
        for line in lines:
            log.info("%s", line)
        for problem in data_problems(inputs) + problems:
            log.warning("%s", problem)
    if warned:
        log.info("training would start; look at this first:")
    for number, message in enumerate(dict.fromkeys(warned), 1):
        log.info("  %d. %s", number, message)
    log.info("ok")


def _look_at_runs(recipe: Recipe) -> None:
    """Say which runs are there. A finished one of another recipe is refused, an unfinished one is not: nothing is lost.

    Raises
    ------
    UserError
        If training would replace a finished run of another recipe or seed.
    """
    experiment = ExperimentFolder.of(recipe)
    for i, seed in enumerate(recipe.exp.seeds):
        run = experiment.run(i)
        if run.finished:
            refuse_conflict(run, recipe, seed)
            continue
        conflict = conflict_with(run, recipe, seed)
        if conflict and not recipe.exp.overwrite:
            log.warning(
                "%s holds an unfinished run of another recipe: %s; training needs exp.run_name to keep both, or "
                "exp.overwrite=true to replace it",
                run.path, conflict,
            )  # fmt: skip
        elif run.recipe.is_file() and not conflict:
            log.info("%s: unfinished; training resumes it", run.path)


if __name__ == "__main__":
    run_command(main)
