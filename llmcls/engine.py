"""The engine: what differs between one process, DDP, FSDP and DeepSpeed, in one place.

The loop asks for an accelerator, for gradients that are (not yet) exchanged, and for named full weights;
which engine answers is the profile's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from llmcls import UserMistake
from llmcls.model import AUTOCAST, Classifier
from llmcls.recipe import Recipe


def open_accelerator(recipe: Recipe) -> Accelerator:
    """The process group and device of the profile, in the recipe's precision.

    Raises
    ------
    UserMistake: the launcher started more processes than joined the group (each would then train alone
        and overwrite the others' files).
    """
    # Without a GPU, accelerate joins plain launched processes only when told that it runs on CPUs; a sharded
    # engine must not be talked into that, or every rank would quietly train a whole model of its own.
    sharded = any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED"))
    on_cpu = not torch.accelerator.is_available() and not sharded
    # Accumulation stays 1 here: the loop weights each micro-batch itself, by its samples.
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=AUTOCAST[recipe.model.torch_dtype], gradient_accumulation_steps=1
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != accelerator.num_processes:
        raise UserMistake(
            f"the launcher started {asked} processes, but they form {accelerator.num_processes} group(s) of one: "
            f"the profile's engine was not engaged on this machine ({accelerator.device.type}); "
            "use accel_configs/cpu.yaml without a GPU, or check that every process sees its GPU"
        )
    _use_all_cores(accelerator)
    return accelerator


def _use_all_cores(accelerator: Accelerator) -> None:
    """Undo the launcher's OMP_NUM_THREADS=1 for processes that compute on the CPU: share its cores between them."""
    if accelerator.device.type != "cpu" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextmanager
def gradients_kept_local(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """Inside, backward passes exchange gradients between ranks only when ``last`` is true."""
    accelerator.gradient_state._set_sync_gradients(last)
    if last:
        yield
    else:
        with accelerator.no_sync(model):
            yield
    accelerator.gradient_state._set_sync_gradients(True)


def sum_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum over all processes; the same tensor back when there is one process."""
    return values if accelerator.num_processes == 1 else accelerator.reduce(values, reduction="sum")


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """True on every rank when ``flag`` is true on any."""
    if accelerator.num_processes == 1:
        return flag
    return bool(sum_over_ranks(accelerator, torch.tensor(float(flag), device=accelerator.device)) > 0)


def unwrapped(model: nn.Module) -> Classifier:
    """The classifier inside what ``accelerator.prepare`` returned.

    Accelerate's own `unwrap_model` imports DeepSpeed to look for its class, which takes seconds.
    """
    while not isinstance(model, Classifier):
        model = model.module
    return model


def trainable_state(accelerator: Accelerator, model: nn.Module) -> dict[str, torch.Tensor]:
    """Every trained parameter, whole, on the CPU, by its name in the unwrapped model. Collective."""
    module = unwrapped(model)
    return {n: p.detach().cpu().clone() for n, p in module.named_parameters() if p.requires_grad}


def load_trainable_state(accelerator: Accelerator, model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put the values of `trainable_state` back into the model. Collective."""
    module = unwrapped(model)
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if parameters.keys() != state.keys():
        odd = sorted(parameters.keys() ^ state.keys())
        raise UserMistake(f"the checkpoint belongs to another model: {', '.join(odd[:5])} stand in only one of the two")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def optimizer_state(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> dict[str, dict[str, Any]]:
    """The optimizer's state of each trained parameter, whole, on the CPU, by parameter name. Collective."""
    module = unwrapped(model)
    inner = optimizer.optimizer
    return {
        n: {k: v.detach().cpu().clone() if torch.is_tensor(v) else v for k, v in inner.state.get(p, {}).items()}
        for n, p in module.named_parameters()
        if p.requires_grad
    }


def load_optimizer_state(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, state: dict[str, dict[str, Any]]
) -> None:
    """Put the values of `optimizer_state` back. Collective."""
    module = unwrapped(model)
    inner = optimizer.optimizer
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            inner.state[parameter] = {
                # AdamW's step counter stays where it was made; everything else lies beside its parameter.
                k: v.to(parameter.device) if torch.is_tensor(v) and v.dim() > 0 else v
                for k, v in state[name].items()
            }


def engine_name(accelerator: Accelerator) -> str:
    """What the profile engaged, for logs: "single", "multi_gpu", "multi_cpu", "fsdp", "deepspeed"."""
    kind = accelerator.distributed_type
    return "single" if kind == DistributedType.NO else kind.value.lower()
