"""What this machine has for a training: devices, disk, access to the hub, and the login of a tracker."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from llmcls.common.user_error import UserError
from llmcls.model.memory import GIB
from llmcls.recipe.schema import Recipe
from llmcls.recipe.shareable import hub_name
from llmcls.training.mlflow_sink import require_mlflow
from llmcls.training.wandb_sink import login_problem, require_wandb, wandb_mode

# Free space below which checkpoints and caches may not fit, in GiB.
LITTLE_DISK = 5.0
# Seconds until the hub counts as unreachable.
ANSWER_SECONDS = 10
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def machine_preview(recipe: Recipe) -> tuple[list[str], list[str]]:
    """What this machine has, one line each, and what of it is a problem."""
    lines: list[str] = []
    problems: list[str] = []
    for found, problem in (*_devices(), _disk(recipe), _hub(recipe), _wandb(recipe), _mlflow(recipe)):
        if found:
            lines.append(found)
        if problem:
            problems.append(problem)
    return lines, problems


def _devices() -> Iterator[tuple[str, str | None]]:
    """Each GPU by name and memory, or the cores of the CPU."""
    if not torch.cuda.is_available():
        yield f"device: CPU, {os.cpu_count()} cores", None
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        yield f"device: GPU {number}, {properties.name}, {properties.total_memory / GIB:.0f} GiB", None


def _disk(recipe: Recipe) -> tuple[str, str | None]:
    """Free space where the results go."""
    folder = Path(recipe.exp.output_root).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    line = f"disk: {free:,.0f} GiB free for {recipe.exp.output_root}"
    return line, f"little disk is left ({free:.1f} GiB)" if free < LITTLE_DISK else None


def _hub(recipe: Recipe) -> tuple[str, str | None]:
    """Whether the weights are at hand, or may be downloaded."""
    spec = recipe.model
    name = hub_name(spec.model_name)
    if name is None:
        return f"hub: not needed, the model is the folder {spec.model_name}", None
    revision = spec.revision or "main"
    cached = [huggingface_hub.try_to_load_from_cache(name, file, revision=revision) for file in _WEIGHTS]
    if any(isinstance(file, str) for file in cached):
        return f"hub: the weights of {name} are in the cache", None
    token = spec.hf_token or huggingface_hub.get_token()
    known = "with a token" if token else "without a token"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "", f"the weights of {name} are not in the cache, and HF_HUB_OFFLINE forbids a download"
    try:
        url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision)
        huggingface_hub.get_hf_file_metadata(url, token=token or False, timeout=ANSWER_SECONDS)
    except GatedRepoError:
        return (
            "",
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then run `hf auth login`",
        )
    except RepositoryNotFoundError:
        return "", f"the hub does not show {name} {known}; check the name, or log in with `hf auth login`"
    except (HfHubHTTPError, OSError, ValueError):
        return "", f"the hub cannot be reached, and the weights of {name} are not in the cache"
    return f"hub: the weights of {name} will be downloaded {known}", None


def _wandb(recipe: Recipe) -> tuple[str, str | None]:
    """Whether wandb can start, if the recipe asks for it."""
    if "wandb" not in recipe.train.report_to:
        return "", None
    try:
        require_wandb()
    except UserError as error:
        return "", str(error)
    problem = login_problem()
    if problem:
        return "", f"train.report_to names wandb, and {problem}"
    mode = wandb_mode()
    return "wandb: logged in" if mode == "online" else f"wandb: {mode} (WANDB_MODE)", None


def _mlflow(recipe: Recipe) -> tuple[str, str | None]:
    """Whether MLflow can start, if the recipe asks for it."""
    if "mlflow" not in recipe.train.report_to:
        return "", None
    try:
        require_mlflow()
    except UserError as error:
        return "", str(error)
    return f"mlflow: {os.environ.get('MLFLOW_TRACKING_URI') or f'{recipe.exp.output_root}/mlflow.db'}", None
