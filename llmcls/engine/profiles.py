"""Profiles: their files, what they shard, and which one fits the hardware."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmcls.common.strict_yaml import read_yaml
from llmcls.common.user_error import UserError
from llmcls.engine.hardware import Hardware, find_hardware
from llmcls.recipe.schema import Recipe

# Beside the package, in a checkout of the project.
PROFILES = Path(__file__).resolve().parents[2] / "accel_configs"


def find_profile(name: str) -> Path:
    """The file of a profile, from its path or its name.

    Raises
    ------
    UserError
        If there is none.
    """
    for path in (Path(name), Path("accel_configs") / f"{name}.yaml", PROFILES / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
    raise UserError(f"--profile: no profile {name!r}; known are {known or 'none'}")


def read_profile(path: Path) -> dict[str, Any]:
    """The settings in a profile file.

    Raises
    ------
    UserError
        If it is not a file of `accelerate`.
    """
    try:
        settings = read_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a profile: {error}") from None
    if not isinstance(settings, dict) or "distributed_type" not in settings:
        raise UserError(f"{path} is not a profile: it has no distributed_type; see accel_configs/ for examples")
    return settings


def sharding_of(settings: dict[str, Any]) -> str:
    """What a profile shards over the ranks: "none", "optimizer_state" or "all"."""
    kind = settings.get("distributed_type")
    if kind == "FSDP":
        return "all"
    if kind == "DEEPSPEED":
        return "all" if int(settings["deepspeed_config"]["zero_stage"]) == 3 else "optimizer_state"
    return "none"


def choose_profile(
    hardware: Hardware, recipe: Recipe, needed: Callable[[int], tuple[float | None, str]]
) -> tuple[str, str]:
    """The profile that fits the hardware and a recipe.

    Sharding costs communication in every layer, so it is chosen only if a whole copy does not fit on a GPU.

    Parameters
    ----------
    hardware : Hardware
    recipe : Recipe
    needed : callable
        The number of processes to the GiB that each of them needs for a whole copy, or None if that is not known, and
        what is known about the model, in words. Asked only if there is a GPU.

    Returns
    -------
    The profile's name, and the reason in words.
    """
    if not hardware.gpus:
        return "cpu", "no NVIDIA GPU was found"
    smallest = min(hardware.gpus)
    gib, basis = needed(processes_of("ddp", hardware))
    fits = gib is None or gib <= smallest
    if gib is None:
        verdict = f"whether a copy fits is not known: {basis}; --model-size says it"
    else:
        verdict = f"a copy needs about {gib:.0f} GiB ({basis}), a GPU has {smallest:.0f}"
    if len(hardware.gpus) == 1 and hardware.machines == 1:
        if not fits:
            verdict += "; it may not fit: a smaller model, model.use_4bit=true or a smaller data.max_length help"
        return "laptop_4bit", f"one GPU; {verdict}"
    if fits:
        return "ddp", f"several GPUs, each holds a copy; {verdict}"
    if recipe.model.use_4bit:
        return "fsdp_qlora", f"a copy does not fit on one GPU, so the 4-bit weights are sharded; {verdict}"
    return "fsdp", f"a copy does not fit on one GPU, so the weights are sharded; {verdict}"


def launcher_of(name: str) -> list[str]:
    """What starts a module with a profile on this machine, behind ``python``; with a free port of its own.

    Commands that train several times start each training so, also beside each other.
    """
    profile = find_profile(name)
    processes = processes_of(profile.stem, find_hardware())
    given = ["--config_file", str(profile), "--num_processes", str(processes), "--main_process_port", "0"]
    return ["-m", "accelerate.commands.launch", *given]


def processes_of(profile: str, hardware: Hardware) -> int:
    """The number of processes, over all machines, that a profile uses on this hardware."""
    per_machine = 1 if profile in ("cpu", "laptop_4bit") else max(1, len(hardware.gpus))
    return per_machine * hardware.machines
