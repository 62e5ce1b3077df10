"""The training loop: one seed, on any engine, from the first step or from a checkpoint.

The loss of an optimizer step is the mean over all its rows, on all ranks, however they were cut into micro-batches:
batch size 4 with 8 accumulation steps is the same as 32 with 1, and the logged number is on the scale of the
evaluation loss.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from llmcls.common.signals import Interrupted, stop_planned, stop_requested
from llmcls.common.user_error import UserError
from llmcls.data.ahead import ahead, depth_for
from llmcls.data.batches import Batch, Step, collate, plan_epoch, steps_per_epoch
from llmcls.engine.accelerator import any_rank, gradients_kept_local, sum_over_ranks
from llmcls.engine.shards import check_shards
from llmcls.evaluation.scoring import Scorer, score_split
from llmcls.recipe.defaults import selection_metric
from llmcls.training.checkpoints import Progress, save_best, save_last
from llmcls.training.optimizer import learning_rate_factor, set_learning_rate
from llmcls.training.progress_bar import Course, StepDisplay
from llmcls.training.selection import Validation, judge, validate, warn_if_constant
from llmcls.training.setup import TrainingSetup

log = logging.getLogger(__name__)

# How late a rank may react to a signal of another one.
SECONDS_BETWEEN_SIGNALS = 2.0


def train_loop(setup: TrainingSetup, model: nn.Module, optimizer: Any, scorer: Scorer, progress: Progress) -> None:
    """Train from ``progress`` to the end; evaluate, keep the best model and save as the recipe says.

    Raises
    ------
    Interrupted
        If a signal asked to stop; `checkpoints/last` was written before.
    UserError
        If the loss is not a number any more.
    """
    per_epoch = steps_per_epoch(len(setup.train_split), setup.global_batch_size)
    display = StepDisplay(_course(setup, progress, per_epoch), setup.accelerator.is_main_process)
    display.best(progress.best_value, progress.best_step)
    interval = _LoggingInterval(progress, setup.accelerator.device)
    model.train()
    shards_checked = False
    try:
        while progress.step < setup.total_steps and not _out_of_patience(setup, progress):
            where = (setup.seed, progress.epoch, progress.step_in_epoch)
            plan = plan_epoch(setup.train_split.lengths, setup.batches, *where, setup.row_weights)
            with collated(setup, plan, scorer.pad_token_id) as steps:
                for step, batches in steps:
                    rows = sum(len(batch.rows) for batch in batches)
                    interval.add(step, rows, optimizer_step(setup, model, optimizer, step, batches, progress.step))
                    progress.step += 1
                    progress.step_in_epoch += 1
                    if not shards_checked:
                        shards_checked = True
                        setup.record(progress.step, "engine", check_shards(setup.accelerator, model, optimizer))
                    epoch_done = progress.step_in_epoch == per_epoch
                    if epoch_done:
                        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
                    display.advance(progress.step, interval.so_far)
                    last = progress.step == setup.total_steps
                    every = setup.recipe.train.eval_steps
                    evaluating = (progress.step % every == 0 if every else epoch_done) or last
                    stopping = stop_planned(progress.step)
                    if not stopping and (evaluating or progress.step % interval.steps_between_signals == 0):
                        stopping = any_rank(setup.accelerator, stop_requested())
                    if progress.step % setup.recipe.train.logging_steps == 0 or evaluating or stopping:
                        interval.report(setup, display, per_epoch)
                    if evaluating:
                        interval.pause()
                        with display.evaluating():
                            _evaluate_and_save(setup, model, optimizer, scorer, progress)
                        display.best(progress.best_value, progress.best_step)
                        interval.resume()
                    if stopping:
                        save_last(setup.folder, setup.accelerator, model, optimizer, progress)
                        raise Interrupted(
                            f"stopped by a signal after step {progress.step} of {setup.total_steps}; saved"
                        )
                    if last or _out_of_patience(setup, progress):
                        break
    finally:
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
) -> torch.Tensor:
    """One optimizer step over the micro-batches of this rank.

    The loss of each micro-batch is weighted by ``ranks / rows of the whole step``. Every engine averages gradients over
    ranks, so the result is the mean over all rows, also if ranks or micro-batches hold different numbers of them.

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
    The sum of the losses of this rank's rows, float32 [], on the device.
    """
    accelerator, recipe = setup.accelerator, setup.recipe
    # Dropout is a function of seed, step and rank, so a resumed run draws the masks of an uninterrupted one.
    sequence = np.random.SeedSequence([setup.seed, number, accelerator.process_index])
    torch.manual_seed(int(sequence.generate_state(1)[0]))
    factor = learning_rate_factor(number, setup.total_steps, recipe.train.warmup_ratio, recipe.train.lr_scheduler_type)
    set_learning_rate(optimizer, recipe.train.learning_rate * factor)
    loss_sum = torch.zeros((), device=accelerator.device)
    for k, prepared in enumerate(batches):
        batch = prepared.to(accelerator.device)
        assert batch.labels is not None, "training rows have labels"
        with gradients_kept_local(accelerator, model, last=k == len(batches) - 1):
            losses = setup.loss_of(model(batch.input_ids, batch.lengths, batch.windows), batch.labels)
            # A rank without rows for this pass runs it with weight zero, so that the ranks stay in step.
            weight = accelerator.num_processes / step.rows if len(batch.rows) else 0.0
            accelerator.backward(losses.sum() * weight)
        if len(batch.rows):
            loss_sum += losses.detach().sum()
    if recipe.train.max_grad_norm > 0:
        accelerator.clip_grad_norm_(model.parameters(), recipe.train.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss_sum


class _LoggingInterval:
    """Loss and speed since the last report, from the rows that were processed; the loss stays on the device."""

    def __init__(self, progress: Progress, device: torch.device) -> None:
        # Steps between two questions whether a rank received a signal: each question makes the ranks wait.
        self.steps_between_signals = 1
        self._progress = progress
        # Apple's GPUs have no float64.
        self._loss = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self._steps = self._rows = self._tokens = self._own_rows = 0
        self._seconds = 0.0
        self._since = time.perf_counter()

    def add(self, step: Step, own_rows: int, loss_sum: torch.Tensor) -> None:
        """Count one optimizer step, of which this rank computed ``own_rows``."""
        self._loss += loss_sum
        self._own_rows += own_rows
        self._steps += 1
        self._rows += step.rows
        self._tokens += step.tokens

    def pause(self) -> None:
        """Stop the clock, because evaluating and saving are not training."""
        elapsed = time.perf_counter() - self._since
        self._seconds += elapsed
        self._progress.seconds += elapsed
        self._since = time.perf_counter()

    def resume(self) -> None:
        """Start the clock again."""
        self._since = time.perf_counter()

    def so_far(self) -> dict[str, float]:
        """Loss and speed since the last report, as this rank knows them; waits for its device, not for other ranks."""
        loss = float(self._loss) / max(1, self._own_rows)
        seconds = self._seconds + time.perf_counter() - self._since
        return {
            "loss": loss, "samples_per_second": self._rows / seconds, "tokens_per_second": self._tokens / seconds,
        }  # fmt: skip

    def report(self, setup: TrainingSetup, display: StepDisplay, per_epoch: int) -> None:
        """Sum over ranks, show, record, and start a new interval."""
        # Reading the loss waits until the device has done the steps; only then the clock is right.
        own_loss = float(self._loss)
        self.pause()
        # Ranks measure different times, so they sum them: all must come to the same number of steps between signals.
        own = torch.tensor([own_loss, self._seconds], dtype=self._loss.dtype, device=self._loss.device)
        loss_sum, seconds = sum_over_ranks(setup.accelerator, own).tolist()
        loss = loss_sum / self._rows
        step_seconds = seconds / setup.accelerator.num_processes / self._steps
        self.steps_between_signals = max(1, min(100, int(SECONDS_BETWEEN_SIGNALS / max(step_seconds, 1e-9))))
        progress, train = self._progress, setup.recipe.train
        progress.loss_sum += loss * self._rows
        progress.loss_samples += self._rows
        progress.samples += self._rows
        progress.tokens += self._tokens
        if not math.isfinite(loss):
            raise UserError(
                f"{setup.recipe.source}: the training loss is {loss} at step {progress.step}; "
                f"lower train.learning_rate ({train.learning_rate}) or set model.torch_dtype=bfloat16 or float32"
            )
        factor = learning_rate_factor(progress.step - 1, setup.total_steps, train.warmup_ratio, train.lr_scheduler_type)
        values = {
            "loss": loss,
            "epoch": progress.epoch + progress.step_in_epoch / per_epoch,
            "learning_rate": train.learning_rate * factor,
            "samples_per_second": self._rows / self._seconds,
            "tokens_per_second": self._tokens / self._seconds,
        }
        display.report(progress.step, values, progress.seconds)
        setup.record(progress.step, "train", values)
        self._loss.zero_()
        self._steps = self._rows = self._tokens = self._own_rows = 0
        self._seconds = 0.0


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


def _evaluate_and_save(
    setup: TrainingSetup, model: nn.Module, optimizer: Any, scorer: Scorer, progress: Progress
) -> None:
    """Evaluate on validation, keep the model if it is the best, and write `checkpoints/last`."""
    entry: dict[str, Any] = {"step": progress.step, "train_loss": progress.loss_sum / max(1, progress.loss_samples)}
    progress.loss_sum, progress.loss_samples = 0.0, 0
    better, split = True, setup.validation_split
    progress.history.append(entry)
    if split is None:
        progress.best_step = progress.step
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
    if better:
        save_best(setup.folder, setup.accelerator, model, setup.recipe.train.save_total_limit, progress.step)
    save_last(setup.folder, setup.accelerator, model, optimizer, progress)


def _compared_to_half(found: Validation, name: str) -> str:
    """The rule of tuned thresholds and the value at 0.5, as text; empty where 0.5 decided or does not matter."""
    if found.rule == "fixed" or name not in found.at_half:
        return ""
    return f" with {found.rule} thresholds ({found.at_half[name]:.4f} at 0.5)"


def _out_of_patience(setup: TrainingSetup, progress: Progress) -> bool:
    patience = setup.recipe.train.early_stopping_patience
    return patience is not None and progress.stale >= patience
