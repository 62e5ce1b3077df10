"""Print the folder of a recipe's results: ``python -m llmcls.folder RECIPE [key=value ...]``. For job scripts."""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import add_recipe_arguments, command_parser, run_command
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import ExperimentFolder, require_no_links


def main(argv: list[str] | None = None) -> None:
    """Print the path."""
    parser = command_parser("folder", "Print the folder of a recipe's results.")
    add_recipe_arguments(parser)
    arguments = parser.parse_args(argv)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    path = ExperimentFolder.of(recipe).path
    # Job scripts write their logs there.
    require_no_links(Path(recipe.exp.output_root), path)
    print(path)


if __name__ == "__main__":
    run_command(main)
