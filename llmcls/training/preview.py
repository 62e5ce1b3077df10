"""What a training of a recipe would do, in words, without training."""

from __future__ import annotations

from dataclasses import replace

import torch

from llmcls.data.batches import global_batch_size, steps_per_epoch
from llmcls.model.build import packing_request
from llmcls.model.memory import Shape, estimate, shape_of
from llmcls.model.packed_forward import packing_in_words
from llmcls.model.pretrained import load_config
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.inputs import Inputs


def preview(recipe: Recipe, inputs: Inputs) -> list[str]:
    """Labels, model, memory, steps, results and devices, one line each."""
    config = load_config(recipe.model, inputs.labels)
    shape = shape_of(config, recipe)
    rows = global_batch_size(recipe, 1)
    steps = steps_per_epoch(len(inputs.train_split), rows)
    storage = "4-bit" if recipe.model.use_4bit else recipe.model.torch_dtype
    trained = "all weights" if recipe.model.lora_r == 0 else f"LoRA r={recipe.model.lora_r}"
    gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    device = torch.accelerator.current_accelerator() if gpus else None
    device = device or torch.device("cpu")
    return [
        f"labels: {len(inputs.labels.names)} ({recipe.model.problem_type})",
        f"model: {recipe.model.model_name} ({config.model_type}), {shape.parameters / 1e6:,.1f} million "
        f"parameters in {storage}, {trained}",
        f"micro-batches: {packing_in_words(config, packing_request(recipe, device))}",
        f"memory: {estimate(shape, recipe, 'none', 1)}",
        *_storage_advice(recipe, shape),
        f"steps: {steps} per epoch of {rows} texts on one process, at most {recipe.train.num_train_epochs} epochs, "
        f"{len(recipe.exp.seeds)} seed(s)",
        f"results: {ExperimentFolder.of(recipe).path}",
        f"devices: {gpus} GPU(s) on this machine",
        "ok",
    ]


def _storage_advice(recipe: Recipe, shape: Shape) -> list[str]:
    """Whether 16 bits would fit: 4-bit weights are dequantized for every micro-batch, which costs time."""
    if not recipe.model.use_4bit:
        return []
    plain = replace(recipe, model=replace(recipe.model, use_4bit=False))
    needed = estimate(shape, plain, "none", 1).total
    if torch.cuda.is_available():
        have = torch.cuda.get_device_properties(0).total_memory / 2**30
        if needed < 0.9 * have:
            return [
                f"advice: without 4-bit it needs about {needed:.1f} of {have:.0f} GiB; use_4bit=false trains faster"
            ]
        return [f"advice: keep 4-bit; without it about {needed:.1f} GiB are needed, and this GPU has {have:.0f}"]
    return [f"advice: without 4-bit it needs about {needed:.1f} GiB; on a GPU that has them, it trains faster"]
