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

from llmcls.common.files import current_folder, read_json
from llmcls.data.labels import LabelSpace
from llmcls.engine.accelerator import shards_state
from llmcls.engine.agreement import from_main
from llmcls.model.memory import estimate, shape_of
from llmcls.model.pretrained import load_config
from llmcls.recipe.defaults import checkpoints_activations
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import RunFolder

log = logging.getLogger(__name__)

# The estimate from shapes leaves out what the layers keep in float32 and the adapter's inputs: real steps need up to
# this factor more.
ESTIMATE_FACTOR = 1.8
# Share of the device memory that the corrected estimate may fill.
MEMORY_SHARE = 0.8


def settle_recomputation(
    recipe: Recipe, run: RunFolder, accelerator: Accelerator, needed_gib: Callable[[Recipe], float]
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
        The memory in GiB that a recipe needs on each GPU; called only where it matters.

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
                needed = ESTIMATE_FACTOR * needed_gib(without)
                decided = needed > MEMORY_SHARE * memory
                log.info(
                    "activations are %s: keeping them needs up to %.1f of %.1f GiB (train.gradient_checkpointing)",
                    "recomputed" if decided else "kept", needed, memory,
                )  # fmt: skip
        decided = from_main(accelerator, decided)
    return replace(recipe, train=replace(train, gradient_checkpointing=decided))


def needed_gib(recipe: Recipe, labels: LabelSpace, ranks: int) -> float:
    """The memory in GiB that an unsharded engine needs on each GPU, from the shapes of the model."""
    return estimate(shape_of(load_config(recipe.model, labels), recipe), recipe, "none", ranks).total


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
    if current_folder(run.last_checkpoint) is None:
        return None
    noted = read_json(run.environment) if run.environment.is_file() else {}
    return bool(noted.get("gradient_checkpointing", True))
