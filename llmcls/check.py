"""Look before the run leaps: ``python -m llmcls.check RECIPE [key=value ...]``.

Loads the recipe, reads and tokenizes the data (training then finds it in the cache), opens the base model's
configuration and tokenizer, and says what will happen; every mistake that can be found without training is
found here.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from llmcls import run_command
from llmcls.base import load_config
from llmcls.batching import BatchSpec, default_micro_batch_tokens, step_rows, steps_per_epoch
from llmcls.memory import Shape, estimate, shape_of
from llmcls.recipe import Recipe, load_recipe
from llmcls.report import experiment_folder
from llmcls.tracking import configure_logging
from llmcls.train import Inputs, check_metric, conflict_with, load_inputs

log = logging.getLogger("llmcls.check")


def main(argv: list[str] | None = None) -> None:
    """Check a recipe and report."""
    parser = argparse.ArgumentParser(prog="llmcls.check", description="Check a recipe, its data and its model.")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args(argv)
    configure_logging(main_process=True)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    check_metric(recipe)
    root = experiment_folder(recipe)
    for i, seed in enumerate(recipe.exp.seeds):
        conflict_with(root / f"run_{i}", recipe, seed)
    inputs = load_inputs(recipe, PartialState(cpu=True))
    for line in describe(recipe, inputs, root):
        log.info("%s", line)


def describe(recipe: Recipe, inputs: Inputs, root: Path) -> list[str]:
    """What a training of the recipe would do, a line each."""
    config = load_config(recipe.model, inputs.labels)
    shape = shape_of(config, recipe)
    memory = estimate(shape, recipe, "none", 1)
    train = recipe.train
    spec = BatchSpec(step_rows(recipe, 1), 1, default_micro_batch_tokens(recipe))
    steps = steps_per_epoch(len(inputs.train), spec)
    storage = "4-bit" if recipe.model.use_4bit else recipe.model.torch_dtype
    trained = "all weights" if recipe.model.lora_r == 0 else f"LoRA r={recipe.model.lora_r}"
    return [
        f"labels: {len(inputs.labels.names)} ({recipe.model.problem_type})",
        f"model: {recipe.model.model_name} ({config.model_type}), {(shape.linear + shape.other) / 1e6:,.1f} million "
        f"parameters in {storage}, {trained}",
        f"memory: about {memory.total:.1f} GiB on one GPU: weights {memory.weights:.2f}, gradients and optimizer "
        f"{memory.state:.2f}, activations up to {memory.activations:.2f}",
        *_storage_advice(recipe, shape),
        f"steps: {steps} an epoch of {spec.step_rows} texts on one process, at most {train.num_train_epochs} epochs, "
        f"{len(recipe.exp.seeds)} seed(s)",
        f"results: {root}",
        f"devices: {torch.accelerator.device_count() if torch.accelerator.is_available() else 0} GPU(s) here",
        "ok",
    ]


def _storage_advice(recipe: Recipe, shape: Shape) -> list[str]:
    """Whether 16 bits would fit: 4-bit weights are unpacked again for every micro-batch, which costs time."""
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
    return [f"advice: without 4-bit it would need about {needed:.1f} GiB; where a GPU has that, it trains faster so"]


if __name__ == "__main__":
    run_command(main)
