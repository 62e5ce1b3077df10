"""Trackers: TensorBoard and wandb, which show the numbers of a run and may never hold it up or end it.

Each gets its numbers in a thread of its own. So training does not wait for a disk or a network, and an interrupt of the
main thread cannot leave a tracker half-way. A tracker that fails is dropped with one warning.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmcls.common.user_error import UserError
from llmcls.recipe.load import recipe_to_dict
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import RunFolder

log = logging.getLogger(__name__)

# What a tracker may take to write or upload the rest, when the run ends.
SECONDS_TO_CLOSE = 60.0

Numbers = dict[str, float]


@dataclass(frozen=True)
class Sink:
    """What a tracker does with numbers, and how it ends."""

    send: Callable[[int, Numbers], None]
    close: Callable[[], None]


class Tracker:
    """A sink in a thread of its own.

    Parameters
    ----------
    name : str
        As in ``train.report_to``.
    open_sink : callable
        Opens the sink; called at once, in this thread.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink]) -> None:
        self.name = name
        self._waiting: queue.SimpleQueue[tuple[int, Numbers] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        try:
            sink = open_sink()
        except UserError:
            raise
        except Exception as error:
            self._give_up(error)
            return
        self._thread = threading.Thread(target=self._run, args=(sink,), daemon=True, name=f"llmcls {name}")
        self._thread.start()

    def send(self, step: int, numbers: Numbers) -> None:
        """Hand numbers over, without waiting for the tracker."""
        if self._thread is not None and self._thread.is_alive():
            self._waiting.put((step, numbers))

    def close(self, seconds: float = SECONDS_TO_CLOSE) -> None:
        """Let the tracker write the rest, for so many seconds at most."""
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("%s did not finish within %.0f s; its last numbers may be missing", self.name, seconds)

    def _run(self, sink: Sink) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                sink.send(*item)
            sink.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        log.warning(
            "%s failed (%s); training continues without it, and metrics.jsonl has its numbers", self.name, reason
        )


def open_trackers(run: RunFolder, recipe: Recipe, resumed_step: int) -> list[Tracker]:
    """The trackers of a recipe.

    Raises
    ------
    UserError
        If the recipe asks for wandb, and it is not installed.
    """
    sinks: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: _tensorboard(run, resumed_step),
        "wandb": lambda: _wandb(run, recipe),
    }
    return [Tracker(name, sinks[name]) for name in dict.fromkeys(recipe.train.report_to)]


def close_all(trackers: list[Tracker]) -> None:
    """Close trackers, within `SECONDS_TO_CLOSE` for all together."""
    deadline = time.monotonic() + SECONDS_TO_CLOSE
    for tracker in trackers:
        tracker.close(max(0.1, deadline - time.monotonic()))


def _tensorboard(run: RunFolder, resumed_step: int) -> Sink:
    """A writer of TensorBoard event files, which hides events after the resumed step."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.tensorboard), purge_step=resumed_step + 1 if resumed_step else None)

    def send(step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Sink(send, writer.close)


def _wandb(run: RunFolder, recipe: Recipe) -> Sink:
    """A wandb run with optimizer steps on the x-axis."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            "train.report_to names wandb, which is not installed; run `pip install 'llmcls[wandb]'`"
        ) from None
    try:
        started: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", recipe.data.dataset_name),
            name="/".join(run.path.parts[-3:]),
            dir=str(run.path),
            config=recipe_to_dict(recipe),
            reinit="finish_previous",
            # The changes of the repository that it would upload can contain what belongs in no tracker.
            settings=wandb.Settings(disable_git=True, save_code=False),
        )
    except wandb.errors.Error as error:
        raise RuntimeError(f"it did not start: {error}; run `wandb login`, or set WANDB_MODE=offline") from error
    started.define_metric("*", step_metric="step")

    def send(step: int, numbers: Numbers) -> None:
        started.log(numbers | {"step": step})

    return Sink(send, started.finish)
