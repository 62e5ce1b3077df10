"""The engine: what differs between one process, DDP, FSDP2 and DeepSpeed, in one place.

The loop asks for an accelerator and for gradients that are (not yet) exchanged; which engine answers is the
profile's business. An engine that was asked for and did not engage stops the run: accelerate would let every
rank train a whole model of its own and overwrite the others' files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import nn

from llmcls import UserMistake
from llmcls.base import AUTOCAST
from llmcls.model import Classifier
from llmcls.recipe import Recipe

# Set by `llmcls.rehearse`: run the profile's real engine on CPU processes, over gloo.
REHEARSAL = "LLMCLS_REHEARSAL"


def open_accelerator(recipe: Recipe, training: bool = True, mixed_precision: str | None = None) -> Accelerator:
    """The process group and device of the profile, in the recipe's precision.

    Parameters
    ----------
    training: False for prediction, which needs no sharded engine: every process holds the model and scores its
        share of the rows, whatever the profile.
    mixed_precision: "no", "bf16" or "fp16"; None takes the recipe's, and for a float32 recipe the profile's.

    Raises
    ------
    UserMistake: the launcher started more processes than joined the group, or the sharded engine of the profile
        is not engaged.
    """
    sharded = [name for name in ("FSDP", "DEEPSPEED") if _flag(f"ACCELERATE_USE_{name}")]
    if not training:
        for name in sharded:
            del os.environ[f"ACCELERATE_USE_{name}"]
        sharded = []
    advice = (
        "use accel_configs/cpu.yaml without a GPU, `python -m llmcls.rehearse` to try this profile on CPU processes, "
        "or check that every process sees its GPU"
    )
    # A rehearsal is for CPU processes, whatever else there is.
    has_gpu = torch.accelerator.is_available() and not _flag(REHEARSAL)
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if sharded and not has_gpu and not _flag(REHEARSAL):
        raise UserMistake(
            f"the profile asks for {sharded[0]} in {asked} process(es), but no GPU is to be seen here; {advice}"
        )
    if sharded and not has_gpu:
        _stand_in_for_gpus()
    # Without a GPU, accelerate joins plain launched processes only when told that it runs on CPUs. Accumulation
    # stays 1: the loop weights each micro-batch itself, by its samples.
    accelerator = Accelerator(
        cpu=not has_gpu and not sharded,
        mixed_precision=mixed_precision or AUTOCAST[recipe.model.torch_dtype],
        gradient_accumulation_steps=1,
    )
    if asked != accelerator.num_processes:
        raise UserMistake(
            f"the launcher started {asked} processes, but the process group has {accelerator.num_processes}; {advice}"
        )
    if sharded and accelerator.distributed_type.value not in sharded:
        raise UserMistake(
            f"the profile asks for {sharded[0]}, but accelerate engaged {accelerator.distributed_type.value} "
            f"on this machine ({accelerator.device.type}); {advice}"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if recipe.model.use_4bit and _zero_stage(accelerator) == 3:
            raise recipe.mistake(
                "model.use_4bit",
                "is true, but ZeRO-3 cannot shard 4-bit weights; use accel_configs/fsdp_qlora.yaml or zero2.yaml, "
                "or set it to false",
            )
        _fill_deepspeed(accelerator, recipe)
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserMistake("the profile has fsdp_version 1, which cannot shard a 4-bit model; set fsdp_version: 2")
    _use_all_cores(accelerator)
    return accelerator


def prepare(accelerator: Accelerator, model: Classifier, optimizer: Any) -> tuple[nn.Module, Any]:
    """Hand model and optimizer to the engine."""
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.mixed_precision != "no":
        # A 4-bit weight travels as a tensor of its storage dtype, which is the compute dtype, so this cast never
        # touches it; gradients are summed in float32.
        from torch.distributed.fsdp import MixedPrecisionPolicy

        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[accelerator.mixed_precision]
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return accelerator.prepare(model, optimizer)


def check_shards(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> dict[str, int]:
    """How much this rank holds, and that a sharded engine did shard. Call after the first optimizer step.

    Returns
    -------
    Elements on this rank and in all: ``{"weights", "weights_whole", "moments", "moments_whole"}``; moments are
    AdamW's first, of the trained parameters.

    Raises
    ------
    RuntimeError: FSDP or ZeRO left every rank with whole copies.
    """
    sizes = {"weights": 0, "weights_whole": 0, "moments": 0, "moments_whole": 0}
    for parameter in unwrapped(model).parameters():
        # ZeRO-3 leaves an empty tensor and keeps the rank's part beside it; FSDP2 makes a DTensor.
        whole = getattr(parameter, "ds_numel", parameter.numel())
        sizes["weights"] += parameter.ds_tensor.numel() if hasattr(parameter, "ds_tensor") else _local(parameter)
        sizes["weights_whole"] += whole
        sizes["moments_whole"] += whole if parameter.requires_grad else 0
    for state in torch_optimizer(optimizer).state.values():
        sizes["moments"] += _local(state.get("exp_avg", state.get("state1")))
    sharded = "weights" if _zero_stage(accelerator) in (None, 3) else "moments"
    if accelerator.num_processes > 1 and shards_state(accelerator) and sizes[sharded] >= sizes[f"{sharded}_whole"]:
        raise RuntimeError(f"{engine_name(accelerator)} was asked for, but every rank holds all {sharded}: {sizes}")
    return sizes


def _local(tensor: torch.Tensor) -> int:
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel()


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
    """The classifier inside what `prepare` returned.

    Accelerate's own `unwrap_model` imports DeepSpeed to look for its class, which takes seconds.
    """
    while not isinstance(model, Classifier):
        model = model.module
    return model


def shards_state(accelerator: Accelerator) -> bool:
    """Whether the optimizer sees only this rank's part of each parameter."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def engine_name(accelerator: Accelerator) -> str:
    """What the profile engaged, for logs: "single", "multi_gpu", "multi_cpu", "fsdp", "deepspeed"."""
    kind = accelerator.distributed_type
    return "single" if kind == DistributedType.NO else kind.value.lower()


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def _zero_stage(accelerator: Accelerator) -> int | None:
    plugin = accelerator.state.deepspeed_plugin
    return None if plugin is None else int(plugin.zero_stage)


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The innermost optimizer, under accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _fill_deepspeed(accelerator: Accelerator, recipe: Recipe) -> None:
    """Give DeepSpeed the recipe's values; the profile holds none of them."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    train = recipe.train
    # Under ZeRO-3 transformers would cut the weights up while reading them, past every check of completeness;
    # each rank reads them whole instead, in main memory, and DeepSpeed cuts them up afterwards.
    unset_hf_deepspeed_config()
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    # Steps are cut into micro-batches by the loop, which also weights their losses; DeepSpeed must not divide again.
    config["gradient_accumulation_steps"] = 1
    config["train_micro_batch_size_per_gpu"] = train.batch_size
    config["train_batch_size"] = train.batch_size * accelerator.num_processes
    config["gradient_clipping"] = train.max_grad_norm
    config["zero_allow_untested_optimizer"] = True


def _stand_in_for_gpus() -> None:
    """Let launched CPU processes pass for GPU ones, so that accelerate engages FSDP or DeepSpeed over gloo."""
    real = PartialState._prepare_backend

    def prepare_backend(self: Any, cpu: bool = False, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
        if "LOCAL_RANK" in os.environ and not cpu and not torch.accelerator.is_available():
            return "gloo", DistributedType.MULTI_GPU
        return real(self, cpu, *args, **kwargs)

    PartialState._prepare_backend = prepare_backend
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ["DS_ACCELERATOR"] = "cpu"
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        import deepspeed

        # DeepSpeed would compile a shared-memory collective in C++, and wait for ever for a lock that a killed
        # run left; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _use_all_cores(accelerator: Accelerator) -> None:
    """Undo the launcher's OMP_NUM_THREADS=1 for processes that compute on the CPU: share its cores between them."""
    if accelerator.device.type != "cpu" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
