"""Training steps that go wrong, on one process or in an engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llmcls.training import loop, timed_checkpoints
from llmcls.training.timed_checkpoints import TimedCheckpoints


class Died(Exception):
    """What stands for a kill: nothing in the project catches it."""


@contextmanager
def trouble(broken: int | None, dies: int | None) -> Iterator[None]:
    """Within this context, the last rank has no loss in one step, and training dies before another.

    Checkpoints by time are due after every step, and written at once.
    """
    real, save = loop.optimizer_step, TimedCheckpoints.save

    def step(setup: Any, *arguments: Any) -> Any:
        number, loss_of, accelerator = arguments[-1], setup.loss_of, setup.accelerator
        if number == dies:
            raise Died
        if number == broken and accelerator.process_index == accelerator.num_processes - 1:
            setup.__dict__["loss_of"] = lambda *found: loss_of(*found) * math.nan
        try:
            return real(setup, *arguments)
        finally:
            setup.__dict__["loss_of"] = loss_of

    def save_and_wait(timed: TimedCheckpoints, *arguments: Any) -> None:
        save(timed, *arguments)
        timed.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "optimizer_step", step)
        patch.setattr("llmcls.training.interval.SECONDS_BETWEEN_SIGNALS", 0.0)
        patch.setattr(TimedCheckpoints, "save", save_and_wait)
        patch.setattr(timed_checkpoints, "LARGEST_SHARE", 1e9)
        yield
