"""environment.json: what a run was made with and from. No paths, no secrets.

`surroundings` needs no training, so that `llmcls reproduce` can compare it before it starts one.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import Accelerator

import llmcls
from llmcls.common.files import read_json, write_json
from llmcls.common.manifest import Entry, entry_of
from llmcls.engine.accelerator import engine_name
from llmcls.engine.hardware import driver_version
from llmcls.model.base_files import base_files
from llmcls.recipe.schema import Recipe
from llmcls.results.reproduction import changed_surroundings
from llmcls.results.run_folder import RunFolder
from llmcls.training.optimizer import optimizer_name

log = logging.getLogger(__name__)

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed", "datasets", "tokenizers", "safetensors",
    "numpy", "scikit-learn",
)  # fmt: skip
# Of environment.json: what is read, and changes a result in any case.
FILES = ("data", "base_model")
BUDGETS = "micro_batch_tokens"
# Of a file system that does not answer.
SECONDS_FOR_GIT = 20


def surroundings(recipe: Recipe) -> dict[str, Any]:
    """What decides the result of a recipe and is not in it: files, code, libraries and devices.

    Parameters
    ----------
    recipe : Recipe

    Returns
    -------
    dict
        ``data`` and ``base_model`` hold size and XXH3 checksum of each file, by split and by name.
    """
    return {
        "llmcls": llmcls.__version__,
        "git": git_state(Path(llmcls.__file__).parent),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "data": {split: _entry(Path(path)) for split, path in recipe.data.files().items()},
        "base_model": {name: _entry(path) for name, path in base_files(recipe.model).items()},
    }


def environment(
    recipe: Recipe, accelerator: Accelerator, optimizer: Any, gradient_checkpointing: bool
) -> dict[str, Any]:
    """`surroundings`, engine, processes and optimizer, and whether activations are recomputed."""
    return surroundings(recipe) | {
        "engine": engine_name(accelerator),
        "processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "optimizer": optimizer_name(optimizer),
        "gradient_checkpointing": gradient_checkpointing,
        "threads": torch.get_num_threads(),
    }


def write_environment(run: RunFolder, found: dict[str, Any], tokens: int, step: int) -> None:
    """Write environment.json, and warn if a run that resumes finds other data or another base model than before.

    Parameters
    ----------
    run : RunFolder
    found : dict
        From `environment`.
    tokens : int
        Of a micro-batch from now on.
    step : int
        Optimizer steps done before.
    """
    before = _noted(run) if step else {}
    files = {key: found[key] for key in FILES if key in before}
    for line in changed_surroundings(before, files):
        log.warning("%s was started with other files: %s; its result belongs to neither", run.path, line)
    write_json(run.environment, found | {BUDGETS: _budgets(before, tokens, step)})


def note_budget(run: RunFolder, tokens: int, step: int) -> None:
    """Note in environment.json that micro-batches have another size from a step on: dropout draws other masks then."""
    before = _noted(run)
    write_json(run.environment, before | {BUDGETS: _budgets(before, tokens, step)})


def _noted(run: RunFolder) -> dict[str, Any]:
    """The content of environment.json; empty without the file."""
    noted = read_json(run.environment) if run.environment.is_file() else {}
    return noted if isinstance(noted, dict) else {}


def _budgets(before: dict[str, Any], tokens: int, step: int) -> dict[str, int]:
    """Tokens of a micro-batch by the number of steps done when they began to hold."""
    kept = {key: value for key, value in before.get(BUDGETS, {}).items() if int(key) <= step}
    return kept if kept and list(kept.values())[-1] == tokens else kept | {str(step): tokens}


def git_state(folder: Path) -> dict[str, str | None] | None:
    """The commit of a checkout, and a checksum of what differs from it in files that git knows.

    Parameters
    ----------
    folder : Path
        In the checkout.

    Returns
    -------
    dict, optional
        ``commit``, and ``changes``: None if nothing differs. None outside of a checkout of the project. The difference
        itself is not kept, because it may hold secrets.
    """
    command = shutil.which("git")
    # An installed package may lie in an environment inside the checkout of something else.
    if command is None or not (folder.parent / ".git").exists():
        return None
    found = [
        _answer([command, "-C", str(folder.parent), *words]) for words in (["rev-parse", "HEAD"], ["diff", "HEAD"])
    ]
    if found[0] is None or found[1] is None:
        return None
    changes = xxhash.xxh3_128(found[1]).hexdigest() if found[1] else None
    return {"commit": found[0].decode().strip(), "changes": changes}


def _answer(command: list[str]) -> bytes | None:
    """What git prints; None if it fails. It takes no lock, so it disturbs no one else."""
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, env=quiet, timeout=SECONDS_FOR_GIT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def _entry(file: Path) -> Entry | None:
    """Size and checksum of a file; None if it cannot be read."""
    try:
        state = file.stat()
        return _known_entry(file, state.st_size, state.st_mtime_ns)
    except OSError:
        return None


@cache
def _known_entry(file: Path, _size: int, _changed: int) -> Entry:
    """The entry of a file, read once as long as it does not change: every seed asks for it."""
    return entry_of(file)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
