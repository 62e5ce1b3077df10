"""The one training loop: one seed, on any engine, from the first step or from where it stopped.

The loss of an optimizer step is the mean over all its samples, on all ranks, however they were cut into
micro-batches: `batch_size 4 x accumulation 8` is `32 x 1`, and the number logged is on the scale of the
evaluation loss.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from llmcls import UserMistake
from llmcls.batching import BatchSpec, Step, balanced_weights, collate, plan_epoch, steps_per_epoch
from llmcls.calibration import Calibration
from llmcls.checkpoints import Progress, save_best, save_last
from llmcls.data import Split
from llmcls.engine import any_rank, check_shards, gradients_kept_local, sum_over_ranks
from llmcls.evaluate import Scorer, evaluate_logits, score_split
from llmcls.interrupt import Interrupted, stop_requested
from llmcls.labels import LabelSpace, as_marks, count_positives
from llmcls.losses import Loss, build_loss
from llmcls.metrics import metric_direction
from llmcls.optim import learning_rate_factor, set_learning_rate
from llmcls.recipe import Recipe
from llmcls.thresholds import Thresholds
from llmcls.tracking import RunLog, StepDisplay

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What stays the same while one seed is trained."""

    recipe: Recipe
    seed: int
    folder: Path
    accelerator: Accelerator
    labels: LabelSpace
    thresholds: Thresholds
    train: Split
    validation: Split | None
    run_log: RunLog | None
    step_rows: int
    packed: bool
    max_tokens: int
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def batches(self) -> BatchSpec:
        """The recipe's batching on this many ranks."""
        grouped = self.recipe.train.group_by_length
        return BatchSpec(self.step_rows, self.accelerator.num_processes, self.max_tokens, self.packed, grouped)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, unless it stops early."""
        train = self.recipe.train
        planned = train.num_train_epochs * steps_per_epoch(len(self.train), self.batches)
        return planned if train.max_steps is None else min(planned, train.max_steps)

    @cached_property
    def loss_of(self) -> Loss:
        """The recipe's loss on this training split."""
        positives = count_positives(self.train.labels, self.labels)
        device = self.accelerator.device
        return build_loss(self.labels.problem_type, self.recipe.train, positives, len(self.train), device)

    @cached_property
    def row_weights(self) -> np.ndarray | None:
        """How often rows are drawn, float64 [rows]; None where each is taken once an epoch."""
        if self.recipe.train.sampling == "uniform":
            return None
        return balanced_weights(as_marks(self.train.labels, self.labels))

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Write to the run's log, on the rank that has it."""
        if self.run_log is not None:
            self.run_log.write(step, split, values)


def train_loop(run: Run, model: nn.Module, optimizer: Any, scorer: Scorer, progress: Progress) -> None:
    """Train from ``progress`` to the end, evaluating, keeping the best and saving as the recipe says.

    Raises
    ------
    Interrupted: told to stop by a signal; `checkpoints/last` was written first.
    UserMistake: the loss is no longer a number.
    """
    per_epoch = steps_per_epoch(len(run.train), run.batches)
    display = StepDisplay(run.total_steps, progress.step, run.accelerator.is_main_process)
    window = _Window(progress, run.accelerator.device)
    model.train()
    shards_checked = False
    try:
        while progress.step < run.total_steps and not _out_of_patience(run, progress):
            where = (run.seed, progress.epoch, progress.step_in_epoch)
            for step in plan_epoch(run.train.lengths, run.batches, *where, run.row_weights):
                window.add(step, optimizer_step(run, model, optimizer, scorer.pad_token_id, step, progress.step))
                progress.step += 1
                progress.step_in_epoch += 1
                if not shards_checked:
                    shards_checked = True
                    run.record(progress.step, "engine", check_shards(run.accelerator, model, optimizer))
                epoch_done = progress.step_in_epoch == per_epoch
                if epoch_done:
                    progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
                display.advance()
                last = progress.step == run.total_steps
                every = run.recipe.train.eval_steps
                evaluating = (progress.step % every == 0 if every else epoch_done) or last
                stopping = any_rank(run.accelerator, stop_requested(progress.step))
                if progress.step % run.recipe.train.logging_steps == 0 or evaluating or stopping:
                    window.report(run, display, per_epoch)
                if evaluating:
                    window.pause()
                    _evaluate_and_save(run, model, optimizer, scorer, progress)
                    window.resume()
                if stopping:
                    save_last(run.folder / "checkpoints", run.accelerator, model, optimizer, progress)
                    raise Interrupted(f"stopped by a signal after step {progress.step} of {run.total_steps}; saved")
                if last or _out_of_patience(run, progress):
                    break
    finally:
        display.close()
    progress.finished = True


def optimizer_step(
    run: Run, model: nn.Module, optimizer: Any, pad_token_id: int, step: Step, number: int
) -> torch.Tensor:
    """One optimizer step over this rank's micro-batches; returns the sum of its samples' losses, on the device.

    Each micro-batch's loss is weighted by ``ranks / samples of the whole step``: gradients are averaged
    over ranks by every engine, so what remains is the mean over all samples, also when ranks or
    micro-batches hold different numbers of them.
    """
    accelerator, recipe = run.accelerator, run.recipe
    # Dropout is a function of seed, step and rank: a resumed run draws the masks an uninterrupted one would.
    sequence = np.random.SeedSequence([run.seed, number, accelerator.process_index])
    torch.manual_seed(int(sequence.generate_state(1)[0]))
    factor = learning_rate_factor(number, run.total_steps, recipe.train.warmup_ratio, recipe.train.lr_scheduler_type)
    set_learning_rate(optimizer, recipe.train.learning_rate * factor)
    loss_sum = torch.zeros((), device=accelerator.device)
    mine = step.micro_batches[accelerator.process_index]
    for k, rows in enumerate(mine):
        batch = collate(run.train, rows, pad_token_id, run.packed).to(accelerator.device)
        with gradients_kept_local(accelerator, model, last=k == len(mine) - 1):
            losses = run.loss_of(model(batch.input_ids, batch.lengths, batch.windows), batch.labels)
            # A rank without rows for this pass still runs it, with weight zero, to keep the ranks in step.
            weight = accelerator.num_processes / step.rows if len(rows) else 0.0
            accelerator.backward(losses.sum() * weight)
        if len(rows):
            loss_sum += losses.detach().sum()
    if recipe.train.max_grad_norm > 0:
        accelerator.clip_grad_norm_(model.parameters(), recipe.train.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss_sum


class _Window:
    """Loss and speed since the last report, from what was really processed; the loss stays on the device."""

    def __init__(self, progress: Progress, device: torch.device) -> None:
        self._progress = progress
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._rows = self._tokens = 0
        self._seconds = 0.0
        self._since = time.perf_counter()

    def add(self, step: Step, loss_sum: torch.Tensor) -> None:
        self._loss += loss_sum
        self._rows += step.rows
        self._tokens += step.tokens

    def pause(self) -> None:
        """Stop the clock: evaluating and saving is not training."""
        elapsed = time.perf_counter() - self._since
        self._seconds += elapsed
        self._progress.seconds += elapsed
        self._since = time.perf_counter()

    def resume(self) -> None:
        self._since = time.perf_counter()

    def report(self, run: Run, display: StepDisplay, per_epoch: int) -> None:
        """Sum over ranks, show, record, and begin a new window."""
        loss = float(sum_over_ranks(run.accelerator, self._loss)) / self._rows
        self.pause()
        progress, train = self._progress, run.recipe.train
        progress.loss_sum += loss * self._rows
        progress.loss_samples += self._rows
        progress.samples += self._rows
        progress.tokens += self._tokens
        if not math.isfinite(loss):
            raise UserMistake(
                f"{run.recipe.source}: the training loss is {loss} at step {progress.step}; "
                f"lower train.learning_rate ({train.learning_rate}) or set model.torch_dtype=bfloat16 or float32"
            )
        factor = learning_rate_factor(progress.step - 1, run.total_steps, train.warmup_ratio, train.lr_scheduler_type)
        values = {
            "loss": loss,
            "epoch": progress.epoch + progress.step_in_epoch / per_epoch,
            "learning_rate": train.learning_rate * factor,
            "samples_per_second": self._rows / self._seconds,
            "tokens_per_second": self._tokens / self._seconds,
        }
        left = (run.total_steps - progress.step) * progress.seconds / progress.step
        display.report(progress.step, values, left)
        run.record(progress.step, "train", values)
        self._loss.zero_()
        self._rows = self._tokens = 0
        self._seconds = 0.0


def _evaluate_and_save(run: Run, model: nn.Module, optimizer: Any, scorer: Scorer, progress: Progress) -> None:
    """Evaluate on validation, keep the model if it is the best, and write `checkpoints/last`."""
    checkpoints = run.folder / "checkpoints"
    entry: dict[str, Any] = {"step": progress.step, "train_loss": progress.loss_sum / max(1, progress.loss_samples)}
    progress.loss_sum, progress.loss_samples = 0.0, 0
    better = True
    if run.validation is not None:
        logits = score_split(scorer, run.validation)
        metrics = evaluate_logits(logits, run.validation.labels, run.labels, run.thresholds).metrics
        name = run.recipe.train.metric_for_best_model
        value = metrics[name]
        if value is None:
            raise run.recipe.mistake(
                "train.metric_for_best_model", f"is {name}, which is undefined on {run.validation.path}; choose another"
            )
        better = progress.best_value is None or metric_direction(name) * (value - progress.best_value) > 0
        progress.stale = 0 if better else progress.stale + 1
        scalars = {k: v for k, v in metrics.items() if not isinstance(v, dict)}
        entry |= {"validation": scalars}
        run.record(progress.step, "validation", scalars)
        log.info(
            "step %d  validation loss %.4f  %s %.4f%s",
            progress.step, metrics["loss"], name, value, "  (best so far)" if better else "",
        )  # fmt: skip
    else:
        value = None
    progress.history.append(entry)
    if better:
        progress.best_value, progress.best_step = value, progress.step
        save_best(checkpoints, run.accelerator, model, run.recipe.train.save_total_limit)
    save_last(checkpoints, run.accelerator, model, optimizer, progress)


def _out_of_patience(run: Run, progress: Progress) -> bool:
    patience = run.recipe.train.early_stopping_patience
    return patience is not None and progress.stale >= patience
