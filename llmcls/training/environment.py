"""environment.json: what a run was made with. No paths, no secrets."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from accelerate import Accelerator

from llmcls import __version__
from llmcls.engine.accelerator import engine_name
from llmcls.training.optimizer import optimizer_name

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed", "datasets")


def environment(accelerator: Accelerator, optimizer: Any, gradient_checkpointing: bool) -> dict[str, Any]:
    """Versions, engine, devices and processes, and whether activations are recomputed."""
    return {
        "llmcls": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "engine": engine_name(accelerator),
        "processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "optimizer": optimizer_name(optimizer),
        "gradient_checkpointing": gradient_checkpointing,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
