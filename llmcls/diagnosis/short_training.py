"""Checks of training itself, with the miniature: 4-bit weights, and a run that is stopped and resumed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from llmcls.common.signals import STOP_AFTER, Interrupted
from llmcls.data.batches import collate, plan_epoch
from llmcls.data.steps import global_batch_size
from llmcls.diagnosis.findings import Finding, Subject, fault, ok, skipped
from llmcls.diagnosis.subject import STEPS, device_of, inputs_of, miniature_of, recipe_of
from llmcls.engine.accelerator import open_accelerator, prepare, unwrapped
from llmcls.engine.full_state import trained_weights
from llmcls.evaluation.scoring import make_scorer
from llmcls.model.build import build_classifier
from llmcls.model.four_bit import quantized_layers
from llmcls.recipe.defaults import micro_batch_tokens
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.checkpoints import Progress, load_last
from llmcls.training.loop import optimizer_step, train_loop
from llmcls.training.optimizer import build_optimizer
from llmcls.training.setup import TrainingSetup

# Steps on the same rows, and the factor by which their loss must fall.
REPEATED, LOWER = 8, 0.97
# Share of all that training changed by which a resumed run may differ. Some kernels of GPUs add in any order. Without
# the state of the optimizer, the difference is about a quarter.
RESUME_TOLERANCE = {"cpu": 1e-6}
OTHER_RESUME_TOLERANCE = 5e-2


@dataclass
class _Run:
    """A run that is ready to train."""

    setup: TrainingSetup
    model: nn.Module
    optimizer: Any
    progress: Progress


def four_bit(subject: Subject) -> Finding:
    """A few steps of a 4-bit model with an adapter, on the same rows: the loss must fall."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return skipped("bitsandbytes is not installed")
    recipe = miniature_of(subject).recipe
    if recipe.model.lora_r == 0:
        return skipped("the recipe trains all weights, which 4 bits do not allow")
    recipe = replace(
        recipe,
        model=replace(recipe.model, use_4bit=True),
        train=replace(recipe.train, learning_rate=1e-2, warmup_ratio=0.0, lr_scheduler_type="constant"),
    )
    with _ready(subject, recipe, "4bit") as run:
        layers = quantized_layers(run.model)
        setup, split = run.setup, run.setup.train_split
        step = next(plan_epoch(split.lengths, setup.batches, 0, 0))
        pad = inputs_of(subject).tokenizer.pad_token_id
        losses = []
        for number in range(REPEATED):
            batches = [collate(split, rows, pad, setup.packed) for rows in step.micro_batches[0]]
            total = optimizer_step(setup, run.model.train(), run.optimizer, step, batches, number)
            losses.append(float(total.loss_sum) / step.rows)
    found = f"loss {losses[0]:.4f} to {losses[-1]:.4f} in {REPEATED} steps with {layers} layers in 4 bits"
    if not losses[-1] < LOWER * losses[0]:
        advice = "install another version of bitsandbytes, or set model.use_4bit=false"
        return fault(f"4-bit training does not learn: {found}", advice, losses=losses)
    return ok(found, losses=losses)


def resume(subject: Subject) -> Finding:
    """A run that is stopped half-way and resumed, against one that is not."""
    recipe = miniature_of(subject).recipe
    # The miniature has no dropout; its masks are a part of what must be the same after a resume.
    dropout = recipe_of(subject).model.lora_dropout or 0.05
    recipe = replace(recipe, model=replace(recipe.model, lora_dropout=dropout))
    start, whole = _trained(subject, recipe, "whole")
    _trained(subject, recipe, "cut", stop_after=STEPS // 2)
    _, resumed = _trained(subject, recipe, "cut")
    changed = float((whole - start).norm())
    off = float((resumed - whole).norm()) / max(changed, 1e-12)
    advice = "report it with doctor.json; until it is solved, do not resume runs on this machine"
    if not changed > 0:
        return fault("training does not change the weights", advice)
    if not off <= RESUME_TOLERANCE.get(device_of(subject).type, OTHER_RESUME_TOLERANCE):
        return fault(f"a resumed run ends with other weights, by {off:.1%} of what training changed", advice, off=off)
    same = "to the last bit" if torch.equal(resumed, whole) else f"within {off:.0e} of what training changed"
    return ok(f"stopped after step {STEPS // 2} of {STEPS} and resumed: the same weights {same}", off=off)


def _trained(
    subject: Subject, recipe: Recipe, name: str, stop_after: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train to the end, or to a step; returns the trained weights before and after, float32 [weights]."""
    with _ready(subject, recipe, name) as run:
        accelerator = run.setup.accelerator
        before = _flat(accelerator, run.model)
        pad = inputs_of(subject).tokenizer.pad_token_id
        scorer = make_scorer(accelerator, run.model, run.setup.labels, pad, recipe)
        earlier = os.environ.get(STOP_AFTER)
        try:
            os.environ[STOP_AFTER] = str(stop_after or -1)
            train_loop(run.setup, run.model, run.optimizer, scorer, run.progress)
        except Interrupted:
            if stop_after is None:
                raise
        finally:
            os.environ.pop(STOP_AFTER, None)
            if earlier is not None:
                os.environ[STOP_AFTER] = earlier
        return before, _flat(accelerator, run.model)


def _flat(accelerator: Accelerator, model: nn.Module) -> torch.Tensor:
    weights = trained_weights(accelerator, model)
    return torch.cat([weights[name].flatten().float().cpu() for name in sorted(weights)])


@contextmanager
def _ready(subject: Subject, recipe: Recipe, name: str) -> Iterator[_Run]:
    """Build model and optimizer of a recipe as `llmcls.train` does, in a run folder of this name."""
    recipe = replace(recipe, exp=replace(recipe.exp, run_name=name))
    inputs, seed = inputs_of(subject), recipe.exp.seeds[0]
    folder = ExperimentFolder.of(recipe).run(0)
    folder.path.mkdir(parents=True, exist_ok=True)
    accelerator = open_accelerator(recipe)
    set_seed(seed)
    classifier = build_classifier(recipe, inputs.labels, accelerator.device)
    unprepared: Any = build_optimizer(classifier, recipe, accelerator.device)
    model, optimizer = prepare(accelerator, classifier, unprepared)
    rows = global_batch_size(recipe, 1)
    progress = load_last(folder, accelerator, model, optimizer) or Progress(seed, rows)
    setup = TrainingSetup(
        recipe, seed, folder, accelerator, inputs.labels, inputs.train_split, inputs.validation_split,
        progress.global_batch_size, unwrapped(model).packs, micro_batch_tokens(recipe),
    )  # fmt: skip
    try:
        yield _Run(setup, model, optimizer, progress)
    finally:
        accelerator.free_memory()
