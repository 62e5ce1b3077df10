"""Trackers: TensorBoard, wandb and MLflow, which show a run and may never hold it up or end it.

Each gets its numbers in a thread of its own. So training does not wait for a disk or a network, and an interrupt of the
main thread cannot leave a tracker half-way. A tracker that fails is dropped with one warning.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from llmcls.common.files import read_json
from llmcls.common.user_error import UserError
from llmcls.recipe.load import recipe_to_dict
from llmcls.recipe.schema import Recipe
from llmcls.results.dashboard import Dashboard
from llmcls.results.run_folder import RunFolder
from llmcls.training.mlflow_sink import open_mlflow, require_mlflow
from llmcls.training.sink import Numbers, Sink, TrackedRun
from llmcls.training.tensorboard_sink import open_tensorboard
from llmcls.training.wandb_sink import login_problem, open_wandb, require_wandb

log = logging.getLogger(__name__)

# What a tracker may take to write or upload the rest, when the run ends.
SECONDS_TO_CLOSE = 60.0


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
        self._waiting: queue.SimpleQueue[Callable[[Sink], None] | None] = queue.SimpleQueue()
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

    @property
    def running(self) -> bool:
        """Whether it takes what it is given."""
        return self._thread is not None and self._thread.is_alive()

    def send(self, step: int, numbers: Numbers) -> None:
        """Hand numbers over, without waiting for the tracker."""
        self._put(lambda sink: sink.send(step, numbers))

    def show(self, step: int, dashboard: Dashboard) -> None:
        """Hand over what a finished run shows."""
        self._put(lambda sink: sink.show(step, dashboard))

    def close(self, seconds: float = SECONDS_TO_CLOSE) -> None:
        """Let the tracker write the rest, for so many seconds at most."""
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("%s did not finish within %.0f s; its last numbers may be missing", self.name, seconds)

    def _put(self, work: Callable[[Sink], None]) -> None:
        if self.running:
            self._waiting.put(work)

    def _run(self, sink: Sink) -> None:
        try:
            while (work := self._waiting.get()) is not None:
                work(sink)
            sink.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        log.warning(
            "%s failed (%s); training continues without it, and metrics.jsonl has its numbers", self.name, reason
        )


def check_trackers(recipe: Recipe) -> None:
    """Say what is wrong with the trackers of a recipe before any work begins.

    Raises
    ------
    UserError
        If the recipe asks for a tracker that is not installed.
    """
    if "wandb" in recipe.train.report_to:
        require_wandb()
        problem = login_problem()
        if problem:
            log.warning("train.report_to names wandb, and %s; training continues without it", problem)
    if "mlflow" in recipe.train.report_to:
        require_mlflow()


def open_trackers(run: RunFolder, recipe: Recipe, resumed_step: int) -> list[Tracker]:
    """The trackers of a recipe.

    Parameters
    ----------
    run : RunFolder
    recipe : Recipe
        Of this run: with one seed.
    resumed_step : int
        The step that the run resumes after; 0 for a new run.

    Raises
    ------
    UserError
        If the recipe asks for a tracker that is not installed.
    """
    config: dict[str, Any] = recipe_to_dict(recipe)
    if run.environment.is_file():
        config["environment"] = read_json(run.environment)
    tracked = TrackedRun(run, recipe, config, resumed_step)
    sinks: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: open_tensorboard(tracked),
        "wandb": lambda: open_wandb(tracked),
        "mlflow": lambda: open_mlflow(tracked),
    }
    wanted = dict.fromkeys(recipe.train.report_to)
    if "wandb" in wanted:
        require_wandb()
        # Without a login it would ask for one; `check_trackers` has said that it is left out.
        if login_problem():
            del wanted["wandb"]
    return [Tracker(name, sinks[name]) for name in wanted]


def close_all(trackers: list[Tracker]) -> None:
    """Close trackers, within `SECONDS_TO_CLOSE` for all together."""
    deadline = time.monotonic() + SECONDS_TO_CLOSE
    for tracker in trackers:
        tracker.close(max(0.1, deadline - time.monotonic()))
