"""Checkpoints by time, beside those of evaluations, so that a kill costs minutes and not an epoch.

Training waits only until weights and optimizer state are copied to main memory. A thread writes the copy to the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from torch import nn

from llmcls.common.user_error import UserError
from llmcls.training.checkpoints import Progress, Snapshot, save_last, take_snapshot, write_last
from llmcls.training.setup import TrainingSetup

log = logging.getLogger(__name__)

# A copy may take at most this share of the time until the next one.
LARGEST_SHARE = 0.01


class TimedCheckpoints:
    """Writes `checkpoints/last` every ``train.save_minutes``, or less often if that would cost too much.

    Parameters
    ----------
    setup : TrainingSetup
    """

    def __init__(self, setup: TrainingSetup) -> None:
        self._setup = setup
        self._writing: threading.Thread | None = None
        # Seconds that the last copy took.
        self._cost = 0.0
        self._restart()

    def due(self) -> bool:
        """Whether it is time. The clock of the main process decides; the other ranks must learn it from there."""
        busy = self._writing is not None and self._writing.is_alive()
        timely = self._next is not None and time.monotonic() >= self._next
        return self._setup.accelerator.is_main_process and timely and not busy

    def save(self, model: nn.Module, optimizer: Any, progress: Progress) -> None:
        """Copy the state, and start to write it. Collective."""
        started = time.monotonic()
        snapshot = take_snapshot(self._setup.accelerator, model, optimizer, progress)
        if self._setup.accelerator.is_main_process:
            self.wait()
            self._writing = threading.Thread(
                target=self._write, args=(snapshot,), daemon=True, name="llmcls checkpoint"
            )
            self._writing.start()
        self._cost = time.monotonic() - started
        self._restart()

    def save_now(self, model: nn.Module, optimizer: Any, progress: Progress) -> None:
        """Write a checkpoint, and return when it is on the disk. Collective.

        Raises
        ------
        UserError
            On the main process, if it cannot be written.
        """
        self.wait()
        save_last(self._setup.folder, self._setup.accelerator, model, optimizer, progress)
        self._restart()

    def wait(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_last(self._setup.folder, snapshot)
        except (UserError, OSError) as error:
            # The one before is intact, and the checkpoint of the next evaluation may succeed.
            log.warning("the checkpoint of step %d was not written: %s", snapshot.progress["step"], error)

    def _restart(self) -> None:
        """Count the time until the next checkpoint from now."""
        seconds = 60 * self._setup.recipe.train.save_minutes
        self._next = time.monotonic() + max(seconds, self._cost / LARGEST_SHARE) if seconds else None
