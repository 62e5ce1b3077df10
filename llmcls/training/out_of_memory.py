"""A training step that does not fit into the memory: it is cut into smaller micro-batches, or the run says what helps.

The loss of a step is the mean over its rows, however they are cut. So a run with a measured budget drops what the step
left, halves the budget, and takes the same step again, with the same rows and the same seed of dropout.

This is possible on one process. Where several exchange gradients, the others may wait inside an exchange that the one
without memory cannot join any more. There the run ends: the launcher ends the other ranks, the smaller budget is
stored, and the same command resumes with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from llmcls.common.files import read_json
from llmcls.common.user_error import UserError
from llmcls.data.batches import Batch
from llmcls.engine.accelerator import engine_name, zero_stage
from llmcls.model.memory import memory_of
from llmcls.model.pretrained import load_config
from llmcls.model.stand_in import kind_of
from llmcls.model.step_trace import MicroBatch, StepTracer, TraceError
from llmcls.recipe.defaults import checkpoints_activations, eval_batch_tokens
from llmcls.recipe.schema import Recipe
from llmcls.training.environment import note_budget
from llmcls.training.setup import TrainingSetup
from llmcls.training.token_budget import lower_stored_budget

log = logging.getLogger(__name__)


class StepTooLarge(torch.OutOfMemoryError):
    """A micro-batch of a step did not fit into the memory; no weight has changed."""


@contextmanager
def noticing_too_large_steps() -> Iterator[None]:
    """Tell the memory of a pass from that of other things, such as the first state of an optimizer.

    Raises
    ------
    StepTooLarge
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StepTooLarge(str(error)) from error


def with_smaller_batches(setup: TrainingSetup, batches: list[Batch], number: int) -> TrainingSetup:
    """The setup with a smaller budget of tokens, which is also stored for later runs.

    Parameters
    ----------
    setup : TrainingSetup
    batches : list of Batch
        The micro-batches of this rank in the step that did not fit.
    number : int
        Optimizer steps done before.

    Returns
    -------
    TrainingSetup

    Raises
    ------
    UserError
        If the recipe fixes the budget, or each micro-batch is a single text, or other ranks wait for this one.
    """
    recipe, ranks = setup.recipe, setup.accelerator.num_processes
    largest = max(batches, key=lambda batch: batch.input_ids.numel())
    tokens = largest.input_ids.numel()
    smaller = max(1, min(setup.max_tokens, tokens) // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if setup.budget_key is None or all(len(batch.rows) <= 1 for batch in batches):
        raise UserError(_what_helps(setup, largest, len(batches) > 1, number))
    file = lower_stored_budget(recipe, setup.budget_key, smaller)
    if ranks > 1:
        raise UserError(
            f"{recipe.source}: rank {setup.accelerator.process_index} has no memory for step {number + 1} with "
            f"{tokens} tokens at once; {file} now says {smaller}: the same command resumes with them from the last "
            "checkpoint"
        )
    note_budget(setup.folder, smaller, number)
    log.warning(
        "step %d does not fit into the memory with %d tokens at once: it is taken again with up to %d, and so are the "
        "steps after it; the results do not depend on it (%s)",
        number + 1, tokens, smaller, file,
    )  # fmt: skip
    return replace(setup, max_tokens=smaller)


def out_of_memory_elsewhere(recipe: Recipe, error: BaseException) -> UserError:
    """What to do if the memory does not suffice beside the passes of training: to load, to evaluate, to step."""
    texts = max(1, eval_batch_tokens(recipe) // recipe.data.max_length)
    said = str(error).splitlines()[0][:80] if str(error) else "no memory left"
    smaller = "" if recipe.model.use_4bit or recipe.model.lora_r == 0 else ", set model.use_4bit=true"
    return UserError(
        f"{recipe.source}: the memory of the device does not suffice beside the training steps ({said}); lower "
        f"train.eval_batch_size (now {texts} texts){smaller}, or use a smaller model"
    )


def _what_helps(setup: TrainingSetup, batch: Batch, accumulates: bool, number: int) -> str:
    """A sentence: what the step needs, and what it would need with other values of the recipe."""
    recipe, lengths = _as_it_runs(setup), tuple(int(length) for length in batch.lengths)
    model, train, longest = recipe.model, recipe.train, max(lengths, default=1)
    changes: list[tuple[str, Recipe, tuple[int, ...]]] = []
    if len(lengths) > 1:
        half = max(1, batch.input_ids.numel() // 2)
        fewer = replace(recipe, train=replace(train, micro_batch_tokens=half))
        changes.append((f"train.micro_batch_tokens={half}", fewer, lengths[::2]))
    if not checkpoints_activations(recipe):
        recomputed = replace(recipe, train=replace(train, gradient_checkpointing=True))
        changes.append(("train.gradient_checkpointing=true", recomputed, lengths))
    if longest > 1:
        shorter = replace(recipe, data=replace(recipe.data, max_length=longest // 2))
        changes.append((f"data.max_length={longest // 2}", shorter, tuple(min(n, longest // 2) for n in lengths)))
    if not model.use_4bit and model.lora_r > 0:
        changes.append(("model.use_4bit=true", replace(recipe, model=replace(model, use_4bit=True)), lengths))
    needed = _gib(setup, recipe, lengths, accumulates)
    offers = []
    for key, changed, cut in changes:
        found = _gib(setup, changed, cut, accumulates or key.startswith("train.micro"))
        # Weights of 4 bits are unpacked to compute with them, which a small model has to pay for.
        if found is None or needed is None or round(found, 1) <= round(needed, 1):
            offers.append(key if found is None else f"{key} ({found:.1f})")
    estimate = "" if needed is None else f", which needs about {needed:.1f} GiB"
    return (
        f"{recipe.source}: no memory for {batch.input_ids.numel()} tokens at once in step {number + 1}{estimate}; "
        f"set {', '.join(offers) or 'model.model_name to a smaller model'}{' GiB' if needed is not None else ''}"
    )


def _as_it_runs(setup: TrainingSetup) -> Recipe:
    """The recipe of a run, with what was decided when it started about recomputing activations."""
    recipe, file = setup.recipe, setup.folder.environment
    noted = read_json(file) if file.is_file() else {}
    decided = noted.get("gradient_checkpointing", recipe.train.gradient_checkpointing)
    return replace(recipe, train=replace(recipe.train, gradient_checkpointing=decided))


def _gib(setup: TrainingSetup, recipe: Recipe, lengths: tuple[int, ...], accumulates: bool) -> float | None:
    """What a pass over texts of these lengths needs on each GPU; None if it is not known."""
    accelerator = setup.accelerator
    sharding = {"fsdp": "all", "deepspeed": "all" if zero_stage(accelerator) == 3 else "optimizer_state"}
    try:
        config = load_config(recipe.model, setup.labels)
        cost = StepTracer(recipe, config, kind_of(accelerator.device)).cost(
            MicroBatch(lengths, accumulates=accumulates)
        )
    except (TraceError, UserError):
        return None
    return memory_of(cost, sharding.get(engine_name(accelerator), "none"), accelerator.num_processes).total
