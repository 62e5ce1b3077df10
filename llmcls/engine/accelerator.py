"""The engine: what differs between one process, DDP, FSDP2 and DeepSpeed.

The profile chooses the engine; the loop only asks for an accelerator and for gradients that are, or are not yet,
exchanged. If the engine that a profile asks for does not start, the run stops: accelerate alone would let every rank
train its own copy of the model and overwrite the files of the others.
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

from llmcls.common.user_error import UserError
from llmcls.engine.freed_memory import keep_freed_memory
from llmcls.model.classifier import Classifier
from llmcls.model.pretrained import AUTOCAST
from llmcls.recipe.schema import Recipe

# Environment variable, set by `llmcls.rehearse`: CPU processes run the profile's real engine over gloo.
REHEARSAL = "LLMCLS_REHEARSAL"


def open_accelerator(recipe: Recipe, training: bool = True, mixed_precision: str | None = None) -> Accelerator:
    """Join the process group of the profile, in the recipe's precision.

    Parameters
    ----------
    recipe : Recipe
    training : bool
        False for prediction, which needs no sharded engine: every process holds the model and scores its share of the
        rows, whatever the profile.
    mixed_precision : str, optional
        "no", "bf16" or "fp16". None means the recipe's precision and, for a float32 recipe, the profile's.

    Raises
    ------
    UserError
        If the launcher started more processes than joined the group, or the sharded engine of the profile does not
        start.
    """
    sharded = _requested_sharding()
    if not training:
        for name in sharded:
            del os.environ[f"ACCELERATE_USE_{name}"]
        sharded = []
    advice = (
        "use accel_configs/cpu.yaml without a GPU, `python -m llmcls.rehearse` to try this profile on CPU processes, "
        "or check that every process sees its GPU"
    )
    _choose_algorithms(recipe)
    # A rehearsal uses CPU processes, also on a machine with GPUs.
    has_gpu = torch.accelerator.is_available() and not _flag(REHEARSAL)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if sharded and not has_gpu and not _flag(REHEARSAL):
        raise UserError(f"the profile asks for {sharded[0]} in {launched} process(es), but no GPU is visible; {advice}")
    # Without a GPU, accelerate joins the launched processes only if it is told that they run on CPUs. Accumulation
    # stays 1, because the loop weights each micro-batch by its samples.
    accelerator = Accelerator(
        cpu=not has_gpu and not sharded,
        mixed_precision=mixed_precision or AUTOCAST[recipe.model.torch_dtype],
        gradient_accumulation_steps=1,
    )
    if launched != accelerator.num_processes:
        raise UserError(
            f"the launcher started {launched} processes, but the process group has {accelerator.num_processes}; "
            f"{advice}"
        )
    if sharded and accelerator.distributed_type.value not in sharded:
        raise UserError(
            f"the profile asks for {sharded[0]}, but accelerate started {accelerator.distributed_type.value} "
            f"on this machine ({accelerator.device.type}); {advice}"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if recipe.model.use_4bit and zero_stage(accelerator) == 3:
            raise recipe.error(
                "model.use_4bit",
                "is true, but ZeRO-3 cannot shard 4-bit weights; use accel_configs/fsdp_qlora.yaml or zero2.yaml, "
                "or set it to false",
            )
        _configure_deepspeed(accelerator, recipe)
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("the profile has fsdp_version 1, which cannot shard a 4-bit model; set fsdp_version: 2")
    _use_all_cores(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def loading_device(accelerator: Accelerator) -> torch.device:
    """Where the weights of a model are loaded and quantized.

    FSDP shards from main memory: it is for models that do not fit on one GPU, so no GPU may ever hold a whole one.
    """
    return torch.device("cpu") if accelerator.distributed_type == DistributedType.FSDP else accelerator.device


def autocast_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """What autocast computes in; None without autocast. A profile can ask for it where the recipe says float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def prepare(accelerator: Accelerator, model: Classifier, optimizer: Any) -> tuple[nn.Module, Any]:
    """Hand model and optimizer to the engine; returns both as the engine wraps them."""
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.mixed_precision != "no":
        # A 4-bit weight travels as a tensor of its storage dtype, which is the compute dtype, so this cast never
        # changes it. Gradients are summed in float32.
        from torch.distributed.fsdp import MixedPrecisionPolicy

        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=autocast_dtype(accelerator), reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return accelerator.prepare(model, optimizer)


@contextmanager
def gradients_kept_local(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """Within this context, backward passes exchange gradients between ranks only if ``last`` is true."""
    accelerator.gradient_state._set_sync_gradients(last)
    try:
        if last:
            yield
        else:
            with accelerator.no_sync(model):
                yield
    finally:
        # Else `zero_grad` would do nothing after a pass that failed.
        accelerator.gradient_state._set_sync_gradients(True)


def sum_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum over all processes; with one process, the same tensor."""
    if accelerator.num_processes == 1:
        return values
    return accelerator.reduce(values, reduction="sum")


def any_rank(accelerator: Accelerator, *flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is true on any rank; the same on every rank. One collective for all flags."""
    if accelerator.num_processes == 1:
        return flags
    own = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return tuple(count > 0 for count in sum_over_ranks(accelerator, own).tolist())


def unwrapped(model: nn.Module) -> Classifier:
    """The classifier inside what `prepare` returned.

    Accelerate's `unwrap_model` imports DeepSpeed to look for its class, which takes seconds.
    """
    inner: Any = model
    while not isinstance(inner, Classifier):
        inner = inner.module
    return inner


def shards_state(accelerator: Accelerator) -> bool:
    """Whether the optimizer of a rank sees only its part of each parameter."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def zero_stage(accelerator: Accelerator) -> int | None:
    """DeepSpeed's ZeRO stage; None with another engine."""
    plugin = accelerator.state.deepspeed_plugin
    return None if plugin is None else int(plugin.zero_stage)


def engine_name(accelerator: Accelerator) -> str:
    """The engine that runs, for logs: "single", "multi_gpu", "multi_cpu", "fsdp", "deepspeed"."""
    kind = accelerator.distributed_type
    return "single" if kind == DistributedType.NO else str(kind.value).lower()


def launched_engine() -> dict[str, Any]:
    """Engine and processes that the launcher asks for, in the words of `engine_name`, before anything is opened."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    sharded = _requested_sharding()
    several = f"multi_{'gpu' if torch.cuda.is_available() and not _flag(REHEARSAL) else 'cpu'}"
    engine = sharded[0].lower() if sharded else several if processes > 1 else "single"
    return {"engine": engine, "processes": processes}


def _requested_sharding() -> list[str]:
    """The sharded engines that the launcher asks for, in the words of its variables."""
    return [name for name in ("FSDP", "DEEPSPEED") if _flag(f"ACCELERATE_USE_{name}")]


def _choose_algorithms(recipe: Recipe) -> None:
    """Let torch use deterministic kernels only, if the recipe asks for it."""
    if recipe.train.deterministic:
        # cuBLAS is deterministic only with a workspace of fixed size. It reads this when its first product is computed.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.train.deterministic)


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def _configure_deepspeed(accelerator: Accelerator, recipe: Recipe) -> None:
    """Give DeepSpeed the values of the recipe; the profile has none of them."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    train = recipe.train
    # Under ZeRO-3, transformers would shard the weights while it reads them, before any check of completeness. Instead,
    # each rank reads them whole into main memory, and DeepSpeed shards them afterwards.
    unset_hf_deepspeed_config()
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    # The loop cuts steps into micro-batches and weights their losses; DeepSpeed must not divide again.
    config["gradient_accumulation_steps"] = 1
    config["train_micro_batch_size_per_gpu"] = train.batch_size
    config["train_batch_size"] = train.batch_size * accelerator.num_processes
    config["gradient_clipping"] = train.max_grad_norm
    config["zero_allow_untested_optimizer"] = True


def _use_all_cores(accelerator: Accelerator) -> None:
    """Share the cores between CPU processes; the launcher sets OMP_NUM_THREADS=1 for all."""
    if accelerator.device.type != "cpu" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
