"""Choose the profile that fits a recipe and the hardware: ``python -m llmcls.profile RECIPE [key=value ...]``."""

from __future__ import annotations

import json
from pathlib import Path

from llmcls.common.command import add_recipe_arguments, begin_imports, command_parser, run_command

if __name__ == "__main__":
    # The imports below take seconds.
    begin_imports()

from llmcls.engine.choice import add_hardware_arguments, choose
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe


def main(argv: list[str] | None = None) -> None:
    """Print the profile, the number of processes and the reason, or one JSON object with ``--json``."""
    parser = command_parser("profile", "Choose the profile that fits a recipe and the hardware.")
    add_recipe_arguments(parser)
    parser.add_argument("--profile", help="use this profile, and only determine its number of processes")
    add_hardware_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    arguments = parser.parse_intermixed_args(argv)
    found = choose(arguments, lambda: load_recipe(arguments.recipe, arguments.overrides))
    if arguments.json:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        chosen = {"profile": found.profile.stem, "file": str(found.profile), "processes": found.processes}
        chosen |= {"reason": found.reason, "gpus": len(found.hardware.gpus), "machines": found.hardware.machines}
        print(json.dumps(chosen | {"files": local_files(recipe)}))
    else:
        reason = f" ({found.reason})" if found.reason else ""
        print(f"profile: {found.profile.stem}, {found.processes} process(es){reason}")


def local_files(recipe: Recipe) -> list[str]:
    """The data files, and the pretrained model if it is a folder, that a recipe reads from this machine."""
    return [path for path in (*recipe.data.files().values(), recipe.model.model_name) if path and Path(path).exists()]


if __name__ == "__main__":
    run_command(main)
