"""The training loop: one seed, on any engine, from the first step or from a checkpoint.

The loss of an optimizer step is the mean over all its rows, on all ranks, however they were cut into micro-batches:
batch size 4 with 8 accumulation steps is the same as 32 with 1, and the logged number is on the scale of the
evaluation loss.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from llmcls.common.heartbeat import beat
from llmcls.common.signals import Interrupted, signal_name, stop_planned, stop_requested, stops_between_steps
from llmcls.data.ahead import ahead, depth_for
from llmcls.data.batches import Batch, Step, collate, plan_epoch
from llmcls.data.steps import steps_per_epoch
from llmcls.engine.accelerator import any_rank, gradients_kept_local
from llmcls.engine.shards import check_shards
from llmcls.evaluation.scoring import Scorer, score_split
from llmcls.evaluation.top_scoring import score_top
from llmcls.recipe.defaults import selection_metric
from llmcls.training.best_checkpoints import save_best
from llmcls.training.checkpoints import Progress
from llmcls.training.finite import GradientWatch, Taken, gradient_norm, step_if_finite
from llmcls.training.interval import LoggingInterval
from llmcls.training.optimizer import learning_rate_factor, set_learning_rate
from llmcls.training.out_of_memory import StepTooLarge, noticing_too_large_steps, with_smaller_batches
from llmcls.training.progress_bar import Course, StepDisplay
from llmcls.training.selection import Validation, judge, validate, validate_top, warn_if_constant
from llmcls.training.setup import TrainingSetup
from llmcls.training.timed_checkpoints import TimedCheckpoints

log = logging.getLogger(__name__)


@stops_between_steps()
def train_loop(setup: TrainingSetup, model: nn.Module, optimizer: Any, scorer: Scorer, progress: Progress) -> None:
    """Train from ``progress`` to the end; evaluate, keep the best model and save as the recipe says.

    Raises
    ------
    Interrupted
        If a signal asked to stop; `checkpoints/last` was written before.
    UserError
        If too many gradients are not numbers, or a step does not fit into the memory and cannot be cut further.
    """
    per_epoch = steps_per_epoch(len(setup.train_split), setup.global_batch_size)
    display = StepDisplay(_course(setup, progress, per_epoch), setup.accelerator.is_main_process)
    display.best(progress.best_value, progress.best_step)
    interval, timed = LoggingInterval(progress, setup.accelerator.device), TimedCheckpoints(setup)
    watch, alone = GradientWatch(setup, progress, interval), setup.accelerator.num_processes == 1
    model.train()
    shards_checked = False
    try:
        while progress.step < setup.total_steps and not _out_of_patience(setup, progress):
            where = (setup.seed, progress.epoch, progress.step_in_epoch)
            plan = plan_epoch(setup.train_split.lengths, setup.batches, *where, setup.row_weights)
            with collated(setup, plan, scorer.pad_token_id) as steps:
                for step, batches in steps:
                    try:
                        taken = optimizer_step(setup, model, optimizer, step, batches, progress.step)
                    except StepTooLarge:
                        taken = None
                    if taken is None:
                        # Only now are the tensors of the step free: the exception kept them.
                        optimizer.zero_grad()
                        setup = with_smaller_batches(setup, batches, progress.step)
                        break
                    progress.step += 1
                    interval.add(step, taken.loss_sum, sum(len(batch.rows) for batch in batches))
                    watch.add(progress.step, step, taken)
                    progress.step_in_epoch += 1
                    if not shards_checked:
                        shards_checked = True
                        shares = check_shards(setup.accelerator, model, optimizer)
                        if progress.step == 1:
                            setup.record(progress.step, "engine", shares)
                    epoch_done = progress.step_in_epoch == per_epoch
                    if epoch_done:
                        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
                    display.advance(progress.step, interval.so_far)
                    last = progress.step == setup.total_steps
                    every = setup.recipe.train.eval_steps
                    evaluating = (progress.step % every == 0 if every else epoch_done) or last
                    stopping, saving = stop_planned(progress.step) or (alone and stop_requested()), False
                    if not stopping and (evaluating or progress.step % interval.steps_between_signals == 0):
                        stopping, saving = any_rank(setup.accelerator, stop_requested(), timed.due())
                    reporting = evaluating or progress.step % setup.recipe.train.logging_steps == 0
                    if reporting or stopping or saving:
                        watch.settle()
                    if reporting:
                        interval.report(setup, display, per_epoch)
                    if evaluating or stopping or saving:
                        interval.settle(setup)
                        interval.pause()
                        if evaluating:
                            with display.evaluating():
                                if _is_best(setup, scorer, progress):
                                    keep = setup.recipe.train.save_total_limit
                                    save_best(setup.folder, setup.accelerator, model, keep, progress.step)
                            display.best(progress.best_value, progress.best_step)
                        save = timed.save_now if evaluating or stopping else timed.save
                        save(model, optimizer, progress)
                        interval.resume()
                    if stopping:
                        raise Interrupted(
                            f"stopped by {signal_name()} after step {progress.step} of {setup.total_steps}; saved"
                        )
                    if last or _out_of_patience(setup, progress):
                        break
    finally:
        timed.wait()
        display.close()
    progress.finished = True


@contextmanager
def collated(
    setup: TrainingSetup, plan: Iterable[Step], pad_token_id: int
) -> Iterator[Iterator[tuple[Step, list[Batch]]]]:
    """The steps of a plan with the micro-batches of this rank, for a GPU prepared ahead of their use.

    Parameters
    ----------
    setup : TrainingSetup
    plan : iterable of Step
        From `plan_epoch`.
    pad_token_id : int

    Yields
    ------
    iterator of (Step, list of Batch)
        The batches are on the host.
    """
    device, rank = setup.accelerator.device, setup.accelerator.process_index

    def batches(step: Step) -> list[Batch]:
        own = step.micro_batches[rank]
        return [collate(setup.train_split, rows, pad_token_id, setup.packed).pinned(device) for rows in own]

    with ahead(((step, batches(step)) for step in plan), depth_for(device), device) as steps:
        yield steps


def optimizer_step(
    setup: TrainingSetup, model: nn.Module, optimizer: Any, step: Step, batches: list[Batch], number: int
) -> Taken:
    """One optimizer step over the micro-batches of this rank.

    The loss of each micro-batch is weighted by ``ranks / rows of the whole step``. Every engine averages gradients over
    ranks, so the result is the mean over all rows, also if ranks or micro-batches hold different numbers of them. With
    weights of classes it is the weighted mean.

    Parameters
    ----------
    setup : TrainingSetup
    model, optimizer
        As `llmcls.engine.accelerator.prepare` returned them.
    step : Step
    batches : list of Batch
        This rank's micro-batches of the step, from `collated`.
    number : int
        Optimizer steps done before.

    Returns
    -------
    Taken

    Raises
    ------
    StepTooLarge
        If a micro-batch does not fit into the memory. The weights have not changed.
    """
    accelerator, recipe = setup.accelerator, setup.recipe
    # Dropout is a function of seed, step and rank, so a resumed run draws the masks of an uninterrupted one.
    sequence = np.random.SeedSequence([setup.seed, number, accelerator.process_index])
    torch.manual_seed(int(sequence.generate_state(1)[0]))
    factor = learning_rate_factor(number, setup.total_steps, recipe.train.warmup_ratio, recipe.train.lr_scheduler_type)
    set_learning_rate(optimizer, recipe.train.learning_rate * factor)
    loss_sum, all_losses = torch.zeros((), device=accelerator.device), []
    scale = setup.loss_scale(step)
    with noticing_too_large_steps():
        for k, prepared in enumerate(batches):
            beat("step", number + 1)
            batch = prepared.to(accelerator.device)
            assert batch.labels is not None, "training rows have labels"
            with gradients_kept_local(accelerator, model, last=k == len(batches) - 1):
                losses = setup.loss_of(model(batch.input_ids, batch.lengths, batch.windows), batch.labels) * scale
                # A rank without rows for this pass runs it with weight zero, so that the ranks stay in step.
                weight = accelerator.num_processes / step.rows if len(batch.rows) else 0.0
                accelerator.backward(losses.sum() * weight)
            all_losses.append(losses.detach())
            if len(batch.rows):
                loss_sum += all_losses[-1].sum()
    beat("the update of step", number + 1)
    norm = gradient_norm(accelerator, model, optimizer, recipe.train.max_grad_norm)
    loss_sum = step_if_finite(accelerator, optimizer, norm, loss_sum)
    optimizer.zero_grad()
    return Taken(loss_sum, norm, all_losses)


def _course(setup: TrainingSetup, progress: Progress, per_epoch: int) -> Course:
    """What the run has before it, for its display."""
    return Course(
        total_steps=setup.total_steps,
        done=progress.step,
        evaluation_every=setup.recipe.train.eval_steps or per_epoch,
        evaluation_rows=len(setup.validation_split) if setup.validation_split is not None else 0,
        metric=selection_metric(setup.recipe),
        device=setup.accelerator.device,
    )


def _is_best(setup: TrainingSetup, scorer: Scorer, progress: Progress) -> bool:
    """Evaluate on validation; whether the model is the best so far."""
    entry: dict[str, Any] = {"step": progress.step, "train_loss": progress.loss_sum / max(1, progress.loss_samples)}
    progress.loss_sum, progress.loss_samples = 0.0, 0
    better, split = True, setup.validation_split
    progress.history.append(entry)
    if split is None:
        progress.best_step = progress.step
    else:
        if setup.labels.many:
            found = validate_top(setup, score_top(scorer, split, setup.recipe.train.top_labels), split)
        else:
            found = validate(score_split(scorer, split), split, setup.labels, setup.recipe.train)
        name = selection_metric(setup.recipe)
        if found.metrics[name] is None:
            raise setup.recipe.error(
                "train.metric_for_best_model", f"is {name}, which is undefined on {split.path}; choose another"
            )
        better = judge(progress, name, found.metrics)
        entry |= {"validation": found.metrics, "thresholds": found.rule, "at_half": found.at_half}
        setup.record(progress.step, "validation", found.metrics | {"at_half": found.at_half})
        log.info(
            "step %d  validation loss %.4f  %s %.4f%s%s",
            progress.step, found.metrics["loss"], name, found.metrics[name], _compared_to_half(found, name),
            "  (best so far)" if better else "",
        )  # fmt: skip
        warn_if_constant(progress.history, name)
    return better


def _compared_to_half(found: Validation, name: str) -> str:
    """The rule of tuned thresholds and the value at 0.5, as text; empty where 0.5 decided or does not matter."""
    if found.rule == "fixed" or name not in found.at_half:
        return ""
    return f" with {found.rule} thresholds ({found.at_half[name]:.4f} at 0.5)"


def _out_of_patience(setup: TrainingSetup, progress: Progress) -> bool:
    patience = setup.recipe.train.early_stopping_patience
    return patience is not None and progress.stale >= patience
