"""Loss and speed between two log lines, from the rows that were processed."""

from __future__ import annotations

import math
import time

import torch

from llmcls.common.user_error import UserError
from llmcls.data.batches import Step
from llmcls.engine.accelerator import sum_over_ranks
from llmcls.evaluation.not_finite import advice
from llmcls.training.checkpoints import Interval, Progress
from llmcls.training.optimizer import learning_rate_factor
from llmcls.training.progress_bar import StepDisplay, memory_used
from llmcls.training.setup import TrainingSetup

# How late a rank may react to a signal of another one.
SECONDS_BETWEEN_SIGNALS = 2.0


class LoggingInterval:
    """Counts steps; the loss stays on the device until `settle`.

    Parameters
    ----------
    progress : Progress
        Its sums are updated by `settle`. So a checkpoint between two log lines holds what the next one will say.
    device : torch.device
    """

    def __init__(self, progress: Progress, device: torch.device) -> None:
        # Steps between two questions whether a rank received a signal: each question makes the ranks wait.
        self.steps_between_signals = 1
        self._progress = progress
        # Apple's GPUs have no float64.
        self._loss = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self._own = Interval()
        # Rows whose losses this rank has.
        self._own_rows = 0
        self._since = time.perf_counter()

    def add(self, step: Step, loss_sum: torch.Tensor, own_rows: int) -> None:
        """Count one optimizer step, of which this rank computed ``own_rows``."""
        self._loss += loss_sum
        self._own_rows += own_rows
        self._own.steps += 1
        self._own.loss_rows += step.rows
        self._own.rows += step.rows
        self._own.tokens += step.tokens

    def leave_out(self, step: Step) -> None:
        """Do not count the losses of a step that did not change the weights."""
        self._own.loss_rows -= step.rows

    def note_norm(self, norm: float) -> None:
        """Note the norm of a gradient."""
        self._own.largest_norm = max(self._own.largest_norm, norm)

    def pause(self) -> None:
        """Stop the clock, because evaluating and saving are not training."""
        elapsed = time.perf_counter() - self._since
        self._own.seconds += elapsed
        self._progress.seconds += elapsed
        self._since = time.perf_counter()

    def resume(self) -> None:
        """Start the clock again."""
        self._since = time.perf_counter()

    def so_far(self) -> dict[str, float]:
        """Loss and speed since the last `settle`, as this rank knows them; waits for its device only."""
        if not self._own_rows:
            return {}
        loss = float(self._loss) / self._own_rows
        seconds = self._own.seconds + time.perf_counter() - self._since
        speeds = {"samples_per_second": self._own.rows / seconds, "tokens_per_second": self._own.tokens / seconds}
        return {"loss": loss, **speeds}

    def settle(self, setup: TrainingSetup) -> None:
        """Sum over ranks, and move all to ``progress``. Collective."""
        if not self._own.steps:
            return
        # Reading the loss waits until the device has done the steps; only then the clock is right.
        own_loss = float(self._loss)
        self.pause()
        # Ranks measure different times, so they sum them: all must come to the same number of steps between signals.
        sums = torch.tensor([own_loss, self._own.seconds], dtype=self._loss.dtype, device=self._loss.device)
        loss_sum, seconds = sum_over_ranks(setup.accelerator, sums).tolist()
        seconds /= setup.accelerator.num_processes
        step_seconds = seconds / self._own.steps
        self.steps_between_signals = max(1, min(100, int(SECONDS_BETWEEN_SIGNALS / max(step_seconds, 1e-9))))
        progress, own = self._progress, self._own
        progress.loss_sum += loss_sum
        progress.loss_samples += own.loss_rows
        progress.samples += own.rows
        progress.tokens += own.tokens
        open_line = progress.interval
        open_line.loss_sum += loss_sum
        open_line.loss_rows += own.loss_rows
        open_line.steps += own.steps
        open_line.rows += own.rows
        open_line.tokens += own.tokens
        open_line.seconds += seconds
        open_line.largest_norm = max(open_line.largest_norm, own.largest_norm)
        self._loss.zero_()
        self._own, self._own_rows = Interval(), 0

    def report(self, setup: TrainingSetup, display: StepDisplay, per_epoch: int) -> None:
        """Settle, show, record, and start a new interval. Collective.

        Raises
        ------
        UserError
            If the loss is not a number any more.
        """
        self.settle(setup)
        progress, train, line = self._progress, setup.recipe.train, self._progress.interval
        if not line.loss_rows:
            # No step counted; the next line will also speak for these.
            return
        loss = line.loss_sum / line.loss_rows
        if not math.isfinite(loss):
            raise UserError(
                f"{setup.recipe.source}: the training loss is {loss} at step {progress.step}; "
                f"{advice(setup.recipe, setup.accelerator.mixed_precision)}"
            )
        factor = learning_rate_factor(progress.step - 1, setup.total_steps, train.warmup_ratio, train.lr_scheduler_type)
        values = {
            "loss": loss,
            "epoch": progress.epoch + progress.step_in_epoch / per_epoch,
            "learning_rate": train.learning_rate * factor,
            "gradient_norm": line.largest_norm,
            "samples_per_second": line.rows / line.seconds,
            "tokens_per_second": line.tokens / line.seconds,
            "memory_gb": memory_used(setup.accelerator.device) / 1e9,
        }
        if train.head_learning_rate is not None:
            values["head_learning_rate"] = train.head_learning_rate * factor
        if train.lora_plus_ratio is not None:
            values["lora_b_learning_rate"] = train.learning_rate * train.lora_plus_ratio * factor
        share = setup.share_of_peak(values["tokens_per_second"])
        if share is not None:
            values["share_of_peak"] = share
        progress.interval = Interval()
        display.report(progress.step, values, progress.seconds)
        setup.record(progress.step, "train", values)
