"""Write a model without pretraining: ``python -m llmcls.scratch RECIPE`` makes a small decoder and its tokenizer.

Meant for machines without a GPU and for texts of one kind. A tokenizer that is trained on the training texts encodes
them in few tokens, and a Llama with two layers and random weights, trained as a whole (``lora_r: 0``), becomes a
classifier in minutes. The model is written to ``model.model_name`` of the recipe.
"""

from __future__ import annotations

from llmcls.common.command import add_recipe_arguments, command_parser, run_command
from llmcls.common.logs import configure_logging
from llmcls.common.user_error import UserError
from llmcls.model.tiny import Size, write_untrained_llama
from llmcls.recipe.load import load_recipe


def main(argv: list[str] | None = None) -> None:
    """Write the model."""
    parser = command_parser("scratch", "Write a small random decoder and a tokenizer for the texts of a recipe.")
    add_recipe_arguments(parser)
    parser.add_argument("--vocabulary", type=int, default=Size.vocabulary, help="number of tokens of the tokenizer")
    parser.add_argument("--hidden", type=int, default=Size.hidden, help="width of the model, a multiple of 32")
    parser.add_argument("--layers", type=int, default=Size.layers, help="number of layers")
    parser.add_argument("--cased", action="store_true", help="distinguish upper and lower case")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    a = parser.parse_intermixed_args(argv)
    configure_logging(main_process=True)
    if a.hidden < 32 or a.hidden % 32 or a.layers < 1 or a.vocabulary < 512:
        raise UserError("--hidden must be a multiple of 32, --layers at least 1 and --vocabulary at least 512")
    recipe = load_recipe(a.recipe, a.overrides)
    write_untrained_llama(recipe, Size(a.vocabulary, a.hidden, a.layers, not a.cased), a.seed)


if __name__ == "__main__":
    run_command(main)
