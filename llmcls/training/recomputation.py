"""Whether the activations of a 4-bit model are recomputed, where the recipe leaves it open.

Recomputing costs a third pass over the model, and a 4-bit model unpacks its weights for each. It is needed only if the
activations do not fit into the memory of the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate import Accelerator

from llmcls.common.files import read_json
from llmcls.engine.accelerator import shards_state
from llmcls.engine.agreement import from_main
from llmcls.model.memory import memory_of
from llmcls.model.pretrained import load_config
from llmcls.model.stand_in import kind_of
from llmcls.model.step_trace import StepTracer, TraceError
from llmcls.recipe.defaults import checkpoints_activations, micro_batch_tokens
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import RunFolder
from llmcls.training.epoch_cost import plan_passes
from llmcls.training.inputs import Inputs

log = logging.getLogger(__name__)

# Share of the device memory that a traced step may fill. The rest is for fragmentation.
MEMORY_SHARE = 0.8


def settle_recomputation(
    recipe: Recipe, run: RunFolder, accelerator: Accelerator, needed_gib: Callable[[Recipe], float | None]
) -> Recipe:
    """The recipe with ``train.gradient_checkpointing`` decided. Collective; the main process decides.

    A 4-bit model on unsharded GPUs recomputes its activations only if they do not fit into the smallest GPU. On CPUs,
    whose memory other programs share, and with sharded engines, which are chosen where memory is scarce, it recomputes
    them. A resumed run keeps what it started with. The weights that result are the same, to the last bit on the CPU.

    Parameters
    ----------
    recipe : Recipe
    run : RunFolder
    accelerator : Accelerator
    needed_gib : callable
        The memory in GiB that a recipe needs on each GPU, or None if it is not known; called only where it matters.

    Returns
    -------
    Recipe
        A copy, to build the model from. The run keeps the recipe as it was written.
    """
    train = recipe.train
    decided = checkpoints_activations(recipe)
    if train.gradient_checkpointing is None and recipe.model.use_4bit:
        memory = _smallest_gpu(accelerator)
        started_with = _of_last_start(run) if accelerator.is_main_process else None
        if started_with is not None:
            decided = started_with
        elif memory is not None and not shards_state(accelerator) and train.checkpoint_layers is None:
            without = replace(recipe, train=replace(train, gradient_checkpointing=False))
            if accelerator.is_main_process:
                decided = _does_not_fit(needed_gib(without), memory)
        decided = from_main(accelerator, decided)
    return replace(recipe, train=replace(train, gradient_checkpointing=decided))


def needed_gib(recipe: Recipe, inputs: Inputs, accelerator: Accelerator) -> float | None:
    """The memory in GiB that an unsharded engine needs on each GPU for the training split; None if it is not known."""
    config = load_config(recipe.model, inputs.labels)
    try:
        tracer = StepTracer(recipe, config, kind_of(accelerator.device))
        plan = plan_passes(tracer, inputs.train_split, micro_batch_tokens(recipe), accelerator.num_processes)
        return memory_of(tracer.cost(plan.largest), "none", accelerator.num_processes).total
    except TraceError as error:
        log.info("the memory of a step is not known: %s cannot be traced (%s)", recipe.model.model_name, error)
        return None


def _does_not_fit(needed: float | None, memory: float) -> bool:
    """Whether activations are recomputed on GPUs with so many GiB; yes if it is not known what keeping them needs."""
    decided = needed is None or needed > MEMORY_SHARE * memory
    if needed is not None:
        log.info(
            "activations are %s: keeping them needs %.1f of %.1f GiB (train.gradient_checkpointing)",
            "recomputed" if decided else "kept", needed, memory,
        )  # fmt: skip
    return decided


def _smallest_gpu(accelerator: Accelerator) -> float | None:
    """Memory in GiB of the smallest GPU of all ranks; None without GPUs. Collective."""
    device = accelerator.device
    if device.type != "cuda":
        return None
    own = torch.tensor([torch.cuda.get_device_properties(device).total_memory / 2**30], device=device)
    return float((accelerator.gather(own) if accelerator.num_processes > 1 else own).min())


def _of_last_start(run: RunFolder) -> bool | None:
    """What a run that can be resumed was started with; None if there is no such run.

    A run of a version that did not write it down recomputed the activations.
    """
    if not run.last_checkpoint.exists() and not run.previous_checkpoint.exists():
        return None
    noted = read_json(run.environment) if run.environment.is_file() else {}
    return bool(noted.get("gradient_checkpointing", True))
