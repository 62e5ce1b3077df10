"""Choose the profile that fits a recipe and the hardware: ``python -m llmcls.profile RECIPE [key=value ...]``."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmcls.common.command import add_recipe_arguments, command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.engine.hardware import Hardware, find_hardware, read_hardware
from llmcls.engine.profiles import choose_profile, find_profile, processes_of
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe


def main(argv: list[str] | None = None) -> None:
    """Print the profile, the number of processes and the reason, or one JSON object with ``--json``."""
    parser = command_parser("profile", "Choose the profile that fits a recipe and the hardware.")
    add_recipe_arguments(parser)
    parser.add_argument("--profile", help="use this profile, and only determine its number of processes")
    parser.add_argument("--machines", type=int, help="number of machines")
    parser.add_argument("--model-size", help="such as 8B; read from the recipe if left out")
    parser.add_argument("--hardware", help="a JSON file that describes the hardware; detected if left out")
    parser.add_argument("--gpus", type=int, help="the hardware in short: GPUs of each machine; 0 for CPUs")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="with --gpus: memory of each GPU")
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    arguments = parser.parse_intermixed_args(argv)
    hardware = hardware_of(arguments)
    if arguments.machines:
        hardware = replace(hardware, machines=arguments.machines)
    if arguments.profile:
        path, reason = find_profile(arguments.profile), None
    else:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        name, reason = choose_profile(hardware, recipe, lambda ranks: needed(recipe, ranks, arguments.model_size))
        path = find_profile(name)
    processes = processes_of(path.stem, hardware)
    if arguments.json:
        chosen = {"profile": path.stem, "file": str(path), "processes": processes, "reason": reason}
        chosen |= {"gpus": len(hardware.gpus), "machines": hardware.machines}
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        print(json.dumps(chosen | {"files": local_files(recipe)}))
    else:
        print(f"profile: {path.stem}, {processes} process(es)" + (f" ({reason})" if reason else ""))


def local_files(recipe: Recipe) -> list[str]:
    """The data files, and the pretrained model if it is a folder, that a recipe reads from this machine."""
    return [path for path in (*recipe.data.files().values(), recipe.model.model_name) if path and Path(path).exists()]


def hardware_of(arguments: argparse.Namespace) -> Hardware:
    """The hardware that the command line describes, or that of this machine.

    Raises
    ------
    UserError
        If the file cannot be read, or the memory of GPUs is not known but needed.
    """
    if arguments.hardware:
        try:
            return read_hardware(arguments.hardware)
        except ValueError as error:
            raise UserError(f"--hardware: {error}") from None
    if arguments.gpus is None:
        return find_hardware()
    if arguments.gpus and arguments.gpu_memory is None and not arguments.profile:
        raise UserError(
            f"{arguments.gpus} GPUs of unknown memory: the profile depends on it; add --gpu-memory GIB, or name the "
            "profile with --profile"
        )
    return Hardware([arguments.gpu_memory or 0.0] * arguments.gpus)


def needed(recipe: Recipe, ranks: int, model_size: str | None) -> tuple[float | None, str]:
    """The GiB that each of ``ranks`` processes needs, or None, and what is known about the model."""
    # Found by name when it is needed: it imports torch, which takes seconds, and without a GPU nobody asks.
    planned_memory: Any = importlib.import_module("llmcls.model.memory").planned_memory
    memory, basis = planned_memory(recipe, ranks, model_size)
    return None if memory is None else memory.total, basis


if __name__ == "__main__":
    run_command(main)
