"""CPU processes that stand in for GPUs, so that accelerate starts FSDP or DeepSpeed over gloo."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def stand_in_for_gpus() -> None:
    """Let the launched CPU processes of this rehearsal pass for GPU processes. Call it before the engine is opened."""
    real = PartialState._prepare_backend

    def prepare_backend(self: Any, cpu: bool = False, *args: Any, **kwargs: Any) -> Any:
        if "LOCAL_RANK" in os.environ and not cpu and not torch.accelerator.is_available():
            return "gloo", DistributedType.MULTI_GPU
        return real(self, cpu, *args, **kwargs)

    PartialState._prepare_backend = prepare_backend
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ["DS_ACCELERATOR"] = "cpu"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true"):
        import deepspeed

        # DeepSpeed would compile a shared-memory collective in C++, and wait forever for a lock that a killed run
        # left behind. gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
