"""Record and show the numbers of a run.

metrics.jsonl is always written, other trackers on request. Progress is shown in a bar on a terminal and in log lines
elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmcls.common.files import write_text
from llmcls.common.logs import RedactingFormatter
from llmcls.common.signals import Interrupted, signal_name
from llmcls.common.user_error import UserError
from llmcls.recipe.schema import Recipe
from llmcls.results.dashboard import Dashboard
from llmcls.results.run_folder import RunFolder
from llmcls.training.trackers import close_all, open_trackers

log = logging.getLogger(__name__)


class RunLog:
    """Writes the numbers and the log of one run. Only the main process has one, and must call `close`.

    metrics.jsonl alone is essential: without it, a run cannot be described or resumed as if nothing had happened.

    Parameters
    ----------
    run : RunFolder
    recipe : Recipe
        Of this run: with one seed.
    resumed_step : int
        The step that the run resumes after. Numbers that were logged after it are removed.

    Raises
    ------
    UserError
        If the recipe asks for a tracker that is not installed.
    """

    def __init__(self, run: RunFolder, recipe: Recipe, resumed_step: int = 0) -> None:
        _drop_after(run.metrics_log, resumed_step)
        self._file = run.metrics_log.open("a", encoding="utf-8", newline="\n")
        self._handler = _log_file(run.log)
        logging.getLogger("llmcls").addHandler(self._handler)
        self._trackers = open_trackers(run, recipe, resumed_step)

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Record values after an optimizer step.

        Parameters
        ----------
        step : int
            Optimizer steps done.
        split : str
            What the values belong to, such as "train", "validation" or "engine".
        values : dict
            Numbers by name; nested dictionaries are allowed.
        """
        self._file.write(json.dumps({"step": step, "split": split, "time": round(time.time(), 3), **values}) + "\n")
        self._file.flush()
        self._send(step, split, values)

    def draw_lines(self, total_steps: int, references: dict[str, dict[str, Any]]) -> None:
        """Show values that do not change, such as those of baselines, as lines from the first step to the last."""
        for step in (0, total_steps):
            for name, values in references.items():
                self._send(step, name, values)

    def show(self, step: int, build: Callable[[], Dashboard]) -> None:
        """Show tables and figures of the finished run in the trackers, if there are any.

        Parameters
        ----------
        step : int
            The last optimizer step.
        build : callable
            Makes them; if it fails, they are left out with a warning, because the run itself is done.
        """
        if not any(tracker.running for tracker in self._trackers):
            return
        try:
            dashboard = build()
        except Exception as error:
            log.warning("tables and figures for the trackers failed (%s: %s)", type(error).__name__, str(error)[:120])
            return
        for tracker in self._trackers:
            tracker.show(step, dashboard)

    def _send(self, step: int, group: str, values: dict[str, Any]) -> None:
        """Hand numbers to the trackers, under the name of their group."""
        numbers = {f"{group}/{name}": v for name, v in flatten(values).items()}
        for tracker in self._trackers:
            tracker.send(step, numbers)

    def close(self, error: BaseException | None = None) -> None:
        """Flush and close all.

        Parameters
        ----------
        error : BaseException, optional
            Why the run ends; written to its log.
        """
        if isinstance(error, UserError | OSError | Interrupted):
            self._note(str(error), None)
        elif isinstance(error, KeyboardInterrupt):
            self._note(f"stopped by {signal_name()}", None)
        elif isinstance(error, Exception):
            self._note("the run ended with an error", error)
        # A full disk that ended the run also refuses what is left in the buffer.
        with contextlib.suppress(OSError):
            self._file.close()
        close_all(self._trackers)
        logging.getLogger("llmcls").removeHandler(self._handler)
        self._handler.close()

    def _note(self, message: str, error: Exception | None) -> None:
        """Write to the log file only; the command prints the error itself."""
        trace = (type(error), error, error.__traceback__) if error else None
        self._handler.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, trace))


class _FragileFile(logging.FileHandler):
    """A log file that is given up with one warning if it cannot be written any more."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Remove the handler, and say so elsewhere."""
        logging.getLogger("llmcls").removeHandler(self)
        log.warning("%s cannot be written any more; the log continues without it", self.baseFilename)

    def close(self) -> None:
        """Close the file; what is left in its buffer may not fit on the disk."""
        with contextlib.suppress(OSError):
            super().close()


def _log_file(path: Path) -> logging.Handler:
    """A handler that writes a log file; one that writes nothing if the file cannot be opened."""
    try:
        handler: logging.Handler = _FragileFile(path, encoding="utf-8")
    except OSError as error:
        log.warning("%s cannot be written (%s); the log continues without it", path, error.strerror)
        return logging.NullHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten nested dictionaries to their finite numbers, with keys joined by "/".

    Parameters
    ----------
    values : dict
    prefix : str
        Put before every key.

    Returns
    -------
    dict of str to float

    Examples
    --------
    >>> flatten({"loss": 0.5, "per_class": {"books": {"f1": 1}}, "note": "text", "best": True})
    {'loss': 0.5, 'per_class/books/f1': 1.0}
    """
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def duration(seconds: float) -> str:
    """Format seconds as "1:02:03" or "2:03".

    Examples
    --------
    >>> duration(3723), duration(123.4)
    ('1:02:03', '2:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _drop_after(path: Path, step: int) -> None:
    """Remove the lines that an interrupted run logged after the step it resumes from, and those that are damaged.

    The end of a run is done again, so its lines go as well.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        write_text(path, "".join(line + "\n" for line in lines if _stays(line, step)))


def _stays(line: str, step: int) -> bool:
    try:
        values = json.loads(line)
        return bool(values["step"] <= step and not values["split"].startswith("final_"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
