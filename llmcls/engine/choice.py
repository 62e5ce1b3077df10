"""Where a training runs: the profile and the number of processes, from what was asked for and from the hardware."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmcls.common.user_error import UserError
from llmcls.engine.hardware import Hardware, find_hardware, read_hardware
from llmcls.engine.profiles import choose_profile, find_profile, processes_of
from llmcls.recipe.schema import Recipe

# As the value of --profile: the one that fits.
AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """Where a training runs.

    Attributes
    ----------
    profile : Path
        Its file.
    processes : int
        Over all machines.
    hardware : Hardware
    reason : str, optional
        Why this profile, in words; None if it was asked for.
    """

    profile: Path
    processes: int
    hardware: Hardware
    reason: str | None = None


def add_hardware_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe hardware."""
    parser.add_argument("--machines", type=int, help="number of machines")
    parser.add_argument("--model-size", help="such as 8B, to choose the profile; read from the recipe if left out")
    parser.add_argument(
        "--hardware",
        metavar="FILE",
        help='a JSON file that describes the hardware, such as {"gpus": [{"memory_gib": 80}], "machines": 1}; detected '
        "if left out",
    )
    parser.add_argument("--gpus", type=int, help="the hardware in short: GPUs of each machine; 0 for CPUs")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="with --gpus: memory of each GPU")


def choose(arguments: argparse.Namespace, load: Callable[[], Recipe]) -> Choice:
    """The profile that was asked for, or the one that fits the recipe and the hardware.

    Parameters
    ----------
    arguments : argparse.Namespace
        With "profile" and those of `add_hardware_arguments`.
    load : callable
        Loads the recipe; called if the profile depends on it.

    Raises
    ------
    UserError
        If there is no such profile, or the hardware is not described well enough.
    """
    named = None if arguments.profile in (None, AUTO) else arguments.profile
    hardware = _hardware_of(arguments, named is not None)
    if arguments.machines:
        hardware = replace(hardware, machines=arguments.machines)
    if named:
        path, reason = find_profile(named), None
    else:
        recipe = load()
        name, reason = choose_profile(hardware, recipe, lambda ranks: needed_gib(recipe, ranks, arguments.model_size))
        path = find_profile(name)
    return Choice(path, processes_of(path.stem, hardware), hardware, reason)


def _hardware_of(arguments: argparse.Namespace, profile_known: bool) -> Hardware:
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
    if arguments.gpus and arguments.gpu_memory is None and not profile_known:
        raise UserError(
            f"{arguments.gpus} GPUs of unknown memory: the profile depends on it; add --gpu-memory GIB, or name the "
            "profile with --profile"
        )
    return Hardware([arguments.gpu_memory or 0.0] * arguments.gpus)


def needed_gib(recipe: Recipe, ranks: int, model_size: str | None = None) -> tuple[float | None, str]:
    """The GiB that each of ``ranks`` processes needs, or None, and what is known about the model."""
    # Found by name when it is needed: it imports torch, which takes seconds, and without a GPU nobody asks.
    planned_memory: Any = importlib.import_module("llmcls.model.memory").planned_memory
    memory, basis = planned_memory(recipe, ranks, model_size)
    return None if memory is None else memory.total, basis
