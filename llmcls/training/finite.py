"""Steps whose gradient is not a number: the optimizer leaves them out, their rows are named, and too many end the run.

The gradient of a step is the same on all ranks, and so is its norm. So all ranks leave out the same steps, without
asking each other. A GPU is never waited for: the optimizer reads the norm there, and the host reads it one step late,
when the GPU is busy with the next step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import nn

from llmcls.common.user_error import UserError
from llmcls.data.batches import Step
from llmcls.engine.shards import torch_optimizer
from llmcls.evaluation.not_finite import advice, named
from llmcls.training.checkpoints import Progress
from llmcls.training.interval import LoggingInterval
from llmcls.training.setup import TrainingSetup

log = logging.getLogger(__name__)

# A norm so many times the usual one is a spike.
SPIKE = 10.0
# Steps before the usual norm is known, and over which it is averaged later.
STEPS_TO_KNOW, STEPS_OF_AVERAGE = 20, 100


@dataclass(frozen=True)
class Taken:
    """What an optimizer step left on the device.

    Attributes
    ----------
    loss_sum : float32 []
        The sum of the losses of this rank's rows; 0 if the step was left out.
    norm : float32 [], optional
        Of the gradient of the step, before clipping; None where a loss scaler watches it.
    losses : list of float [rows]
        Of each micro-batch of this rank.
    """

    loss_sum: torch.Tensor
    norm: torch.Tensor | None
    losses: list[torch.Tensor]


def gradient_norm(accelerator: Accelerator, model: nn.Module, optimizer: Any, largest: float) -> torch.Tensor | None:
    """The norm of the gradient, which is then clipped; float32 [].

    Parameters
    ----------
    accelerator : Accelerator
    model : nn.Module
    optimizer : torch.optim.Optimizer, or a wrapper of one
    largest : float
        What it is clipped to; 0 for no clipping.

    Returns
    -------
    Tensor, optional
        None with float16 and a loss scaler, which expects infinite gradients and leaves out steps itself.
    """
    parameters: Iterable[nn.Parameter] = model.parameters()
    if accelerator.distributed_type != DistributedType.FSDP:
        # The same gradients, without a walk through all modules. With FSDP, accelerate asks for those of a model.
        parameters = [p for group in torch_optimizer(optimizer).param_groups for p in group["params"]]
    if getattr(accelerator, "scaler", None) is not None:
        if largest:
            accelerator.clip_grad_norm_(parameters, largest)
        return None
    norm: Any = accelerator.clip_grad_norm_(parameters, largest or math.inf)
    if norm is None:
        return None
    whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return torch.as_tensor(whole, dtype=torch.float32).detach()


def step_if_finite(
    accelerator: Accelerator, optimizer: Any, norm: torch.Tensor | None, loss_sum: torch.Tensor
) -> torch.Tensor:
    """Change the weights, unless the gradient is not a number; returns ``loss_sum``, or 0 if they did not change."""
    if norm is None:
        optimizer.step()
        return loss_sum
    finite, inner = torch.isfinite(norm), torch_optimizer(optimizer)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # It has stepped in its backward pass, or left the step out.
        optimizer.step()
    elif norm.device.type == "cuda" and inner.defaults.get("fused"):
        inner.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(finite):
        optimizer.step()
    return torch.where(finite.to(loss_sum.device), loss_sum, 0.0)


@dataclass(frozen=True)
class _Pending:
    """A step whose norm the host has not read yet."""

    number: int
    step: Step
    losses: list[torch.Tensor]
    norm: torch.Tensor
    copied: torch.cuda.Event | None


class GradientWatch:
    """Reads the norm of each step, one step late on a GPU.

    Parameters
    ----------
    setup : TrainingSetup
    progress : Progress
        Its ``skipped_steps``, ``usual_norm`` and ``norms`` are updated.
    interval : LoggingInterval
        Learns which rows do not count, and the norms.
    """

    def __init__(self, setup: TrainingSetup, progress: Progress, interval: LoggingInterval) -> None:
        self._setup, self._progress, self._interval = setup, progress, interval
        self._pending: list[_Pending] = []

    def add(self, number: int, step: Step, taken: Taken) -> None:
        """Note a step, and read the norm of the one before, or on a CPU its own. Collective.

        Raises
        ------
        UserError
            If more than ``train.max_skipped_steps`` steps were left out; on all ranks.
        """
        if taken.norm is None:
            return
        norm, copied = taken.norm, None
        if norm.device.type == "cuda":
            norm = torch.empty((), dtype=torch.float32, pin_memory=True).copy_(norm, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending.append(_Pending(number, step, taken.losses, norm, copied))
        self._read(1 if copied is not None else 0)

    def settle(self) -> None:
        """Read the norms of all steps. Collective.

        Raises
        ------
        UserError
            As `add`.
        """
        self._read(0)

    def _read(self, unread: int) -> None:
        while len(self._pending) > unread:
            pending = self._pending.pop(0)
            if pending.copied is not None:
                pending.copied.synchronize()
            norm = float(pending.norm)
            if math.isfinite(norm):
                self._count(pending.number, norm)
            else:
                self._leave_out(pending)

    def _count(self, number: int, norm: float) -> None:
        """Compare a norm with the usual one, and add it to that."""
        progress = self._progress
        self._interval.note_norm(norm)
        if progress.norms >= STEPS_TO_KNOW and norm > SPIKE * progress.usual_norm:
            log.warning(
                "step %d: the norm of the gradient is %.3g, %.0f times the usual %.3g; it is clipped to %s",
                number, norm, norm / progress.usual_norm, progress.usual_norm,
                self._setup.recipe.train.max_grad_norm or "nothing",
            )  # fmt: skip
            norm = SPIKE * progress.usual_norm
        progress.norms += 1
        progress.usual_norm += (norm - progress.usual_norm) / min(progress.norms, STEPS_OF_AVERAGE)

    def _leave_out(self, pending: _Pending) -> None:
        """Name the rows of a step that was left out, and stop if it is one too many."""
        setup, progress = self._setup, self._progress
        progress.skipped_steps += 1
        self._interval.leave_out(pending.step)
        rows, most = self._rows(pending), setup.recipe.train.max_skipped_steps
        log.warning(
            "step %d: the gradient is not a number, so the step is left out (%d of at most %d); %s",
            pending.number, progress.skipped_steps, most, rows,
        )  # fmt: skip
        if progress.skipped_steps > most:
            raise UserError(
                f"{setup.recipe.source}: the gradient was not a number in {progress.skipped_steps} steps, last in step "
                f"{pending.number} ({rows}); {advice(setup.recipe, setup.accelerator.mixed_precision)}"
            )

    def _rows(self, pending: _Pending) -> str:
        """The rows whose loss is not a number, or else those of the step, on all ranks; as text. Collective."""
        setup = self._setup
        own = pending.step.micro_batches[setup.accelerator.process_index]
        bad = [
            int(row)
            for rows, losses in zip(own, pending.losses, strict=True)
            if len(rows)
            for row in rows[~torch.isfinite(losses.float()).cpu().numpy()]
        ]
        found = sorted(gather_object(bad))
        every = np.concatenate([np.concatenate(of_rank) for of_rank in pending.step.micro_batches])
        ids = [str(i) for i in setup.train_split.table[found or sorted(every.tolist())]["id"]]
        return f"the loss of {named(ids)} is not a number" if found else f"its rows are {named(ids)}"
