"""Look before the run leaps: ``python -m llmcls.check RECIPE [key=value ...]``.

Loads the recipe, reads and tokenizes the data (training then finds it in the cache), opens the base model's
configuration and tokenizer, and says what will happen; every mistake that can be found without training is
found here.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState, init_empty_weights

from llmcls import run_command
from llmcls.batching import BatchSpec, steps_per_epoch
from llmcls.loop import step_rows
from llmcls.model import load_config
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
    billions = _parameters(config, recipe) / 1e9
    train = recipe.train
    spec = BatchSpec(train.batch_size, step_rows(recipe, 1), 1, train.micro_batch_tokens)
    steps = steps_per_epoch(len(inputs.train), spec)
    storage = "4-bit" if recipe.model.use_4bit else recipe.model.torch_dtype
    trained = "all weights" if recipe.model.lora_r == 0 else f"LoRA r={recipe.model.lora_r}"
    return [
        f"labels: {len(inputs.labels.names)} ({recipe.model.problem_type})",
        f"model: {recipe.model.model_name} ({config.model_type}), {billions:.3f} billion parameters in {storage}, "
        f"{trained}: about {weights_gib(billions, recipe):.2f} GiB of weights and optimizer state",
        f"steps: {steps} an epoch of {spec.step_rows} texts on one process, at most {train.num_train_epochs} epochs, "
        f"{len(recipe.exp.seeds)} seed(s)",
        f"results: {root}",
        f"devices: {torch.accelerator.device_count() if torch.accelerator.is_available() else 0} GPU(s) here",
        "ok",
    ]


def weights_gib(billions: float, recipe: Recipe) -> float:
    """Memory in GiB of weights, gradients and optimizer state of one whole copy, without activations.

    Trained weights cost 16 bytes (float32 weight, gradient, two AdamW moments); frozen ones 0.57 in NF4 with
    double quantization (4.127 bits, Dettmers et al. 2023, and the unquantized embeddings), 2 or 4 else.
    """
    if recipe.model.lora_r == 0:
        per_parameter = 16.0
    else:
        per_parameter = 0.57 if recipe.model.use_4bit else 4.0 if recipe.model.torch_dtype == "float32" else 2.0
    return billions * 1e9 * per_parameter / 2**30


def _parameters(config: Any, recipe: Recipe) -> int:
    from transformers import AutoModelForSequenceClassification

    with init_empty_weights():
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=recipe.model.trust_remote_code)
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    run_command(main)
