"""Check a recipe before training: ``python -m llmcls.check RECIPE [key=value ...]``.

Loads the recipe, reads and tokenizes the data (training then reads it from the cache), opens the configuration and the
tokenizer of the model, and prints what training will do, with the memory of a step and the time of an epoch. Reports
every error that can be found without training.
"""

from __future__ import annotations

import logging

import torch
from accelerate import PartialState

from llmcls.common.command import add_recipe_arguments, command_parser, run_command
from llmcls.common.logs import configure_logging
from llmcls.common.user_error import UserError
from llmcls.model.cards import find_card
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import ExperimentFolder, refuse_conflict
from llmcls.training.inputs import load_inputs
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
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    experiment = ExperimentFolder.of(recipe)
    for i, seed in enumerate(recipe.exp.seeds):
        refuse_conflict(experiment.run(i), recipe, seed)
    inputs = load_inputs(recipe, PartialState(cpu=True))
    for line in preview(recipe, inputs, card, arguments.price):
        log.info("%s", line)


if __name__ == "__main__":
    run_command(main)
