"""How far a training is: a bar of two lines on a terminal, log lines elsewhere.

The time that is left counts the evaluations that are still to come, so that it neither jumps at an evaluation nor after
it. Between two reports, the numbers of the bar are renewed from this process alone.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

import psutil
import torch
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.text import Text

from llmcls.recipe.metric_names import in_words
from llmcls.training.tracking import duration

log = logging.getLogger(__name__)

# Reading the loss of a GPU waits until it has done the steps before, which must not happen at each of many short ones.
SECONDS_BETWEEN_NUMBERS = 2.0
# A forward pass is about a third of a training step. Used until the first evaluation is measured.
SHARE_OF_FORWARD = 1 / 3


@dataclass(frozen=True)
class Course:
    """What a run has before it.

    Attributes
    ----------
    total_steps : int
        Optimizer steps of the whole run.
    done : int
        Optimizer steps done before a resume.
    evaluation_every : int
        Optimizer steps between two evaluations; there is always one at the end.
    evaluation_rows : int
        Rows of an evaluation.
    metric : str
        The metric that selects the best model.
    device : torch.device
        Whose memory is shown.
    """

    total_steps: int
    done: int
    evaluation_every: int
    evaluation_rows: int
    metric: str
    device: torch.device


class StepDisplay:
    """Shows loss, samples/s, tokens/s, the best evaluation, memory and time.

    Parameters
    ----------
    course : Course
    shown : bool
        Whether to show a bar on a terminal; false on all ranks but the first.
    console : Console, optional
        Default: standard error.
    """

    def __init__(self, course: Course, shown: bool, console: Console | None = None) -> None:
        self._course = course
        self._step = course.done
        self._numbers: dict[str, float] = {}
        self._best: tuple[float, int] | None = None
        self._evaluating = False
        self._evaluations: list[float] = []
        self._started = self._renewed = time.monotonic()
        # The time that is left, and when that was computed.
        self._left: tuple[float, float] | None = None
        self._live: Live | None = None
        console = console or Console(stderr=True)
        if shown and console.is_terminal:
            self._terminal = sys.stderr
            self._live = Live(get_renderable=lambda: self, console=console, transient=True, refresh_per_second=4)
            # Drawn at once: a line that is printed while another thread draws the bar for the first time would be put
            # behind the bar, because rich does not know yet that there is one.
            self._live.start(refresh=True)
            # Now standard error is a stream that writes above the bar and not into it.
            _move_log(self._terminal, sys.stderr)

    def advance(self, step: int, so_far: Callable[[], dict[str, float]]) -> None:
        """Count an optimizer step.

        Parameters
        ----------
        step : int
            Optimizer steps done.
        so_far : callable
            The numbers of the current logging interval, as for `report`. Called now and then, and only for a bar.
        """
        self._step = step
        if self._live and time.monotonic() - self._renewed >= SECONDS_BETWEEN_NUMBERS:
            self._numbers |= so_far()
            self._renewed = time.monotonic()

    def report(self, step: int, values: dict[str, float], training_seconds: float) -> None:
        """Show the numbers of the last logging interval.

        Parameters
        ----------
        step : int
            Optimizer steps done.
        values : dict
            "loss", "samples_per_second", "tokens_per_second", "epoch" and "learning_rate".
        training_seconds : float
            Of the whole run so far, without its evaluations.
        """
        self._step, self._numbers, self._renewed = step, dict(values), time.monotonic()
        self._left = self._seconds_left(training_seconds / max(1, step)), self._renewed
        if not self._live:
            log.info(
                "step %d/%d  epoch %.2f  %s  lr %.2e  %s left",
                step, self._course.total_steps, values["epoch"], "  ".join(_speeds(values)), values["learning_rate"],
                duration(self._left[0]),
            )  # fmt: skip

    def _seconds_left(self, step_seconds: float) -> float:
        """The steps and the evaluations that are still to come."""
        course, steps = self._course, self._course.total_steps - self._step
        every, total = course.evaluation_every, course.total_steps
        # A report comes before the evaluation of its step, and the last step has one in any case.
        evaluations = total // every - math.ceil(self._step / every) + 1 + (total % every > 0)
        known = self._evaluations
        guess = SHARE_OF_FORWARD * course.evaluation_rows / max(self._numbers.get("samples_per_second", 0.0), 1e-9)
        each = sum(known) / len(known) if known else guess if course.evaluation_rows else 0.0
        return steps * step_seconds + evaluations * each

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show that an evaluation is running, and measure it."""
        start, self._evaluating = time.monotonic(), True
        try:
            yield
        finally:
            self._evaluating = False
            self._evaluations.append(time.monotonic() - start)

    def best(self, value: float | None, step: int | None) -> None:
        """Show the best evaluation so far: its metric and its step; None for none."""
        self._best = None if value is None or step is None else (value, step)

    def close(self) -> None:
        """Remove the bar."""
        if self._live:
            _move_log(sys.stderr, self._terminal)
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The two lines of the bar, as wide as the terminal."""
        width = options.max_width
        first = self._first_line(width, "#-" if options.ascii_only else "━─")
        yield Group(first, Text(self._second_line(width), no_wrap=True))

    def _first_line(self, width: int, ink: str) -> Text:
        """Steps, bar, and the two times with their names."""
        total, now = self._course.total_steps, time.monotonic()
        left = "-:--" if self._left is None else duration(max(0.0, self._left[0] - (now - self._left[1])))
        head, tail = f"step {self._step}/{total} ", f" {duration(now - self._started)} elapsed  {left} left"
        room = width - len(head) - len(tail)
        if room < 5:
            return Text("  ".join(_that_fit([head.strip(), *tail.strip().split("  ")[::-1]], width)), no_wrap=True)
        filled = round(room * self._step / max(1, total))
        line = Text(head, no_wrap=True)
        line.append(ink[0] * filled, style="bar.complete").append(ink[1] * (room - filled), style="bar.back")
        return line.append(tail)

    def _second_line(self, width: int) -> str:
        """What is known: all of it where there is room, else shorter and the most important first."""
        speeds = _speeds(self._numbers) if self._numbers else []
        now = ["evaluating"] if self._evaluating else []
        name, memory = in_words(self._course.metric), memory_in_words(self._course.device)
        value, step = self._best or (0.0, 0)
        best = [f"best {name} {value:.4f} at {step}", f"best {value:.4f} at {step}"] if self._best else []
        whole = "  ".join([*now, *speeds, *best[:1], memory])
        if len(whole) <= width:
            return whole
        # The speed stands still during an evaluation.
        speeds = speeds[: 1 if now else 2]
        return "  ".join(_that_fit([*now, *speeds, *best[1:], memory.replace(" of ", "/")], width))


def _speeds(values: dict[str, float]) -> list[str]:
    """Loss and speed in words."""
    return [
        f"loss {values['loss']:.4f}",
        f"{values['samples_per_second']:.1f} samples/s",
        f"{values['tokens_per_second']:.0f} tokens/s",
    ]


def _that_fit(words: list[str], width: int) -> list[str]:
    """The first of some words that fit into a line beside each other, two blanks apart.

    Examples
    --------
    >>> _that_fit(["loss 0.1", "a very long thing", "5 GB"], 16)
    ['loss 0.1', '5 GB']
    """
    kept: list[str] = []
    for word in words:
        if len("  ".join([*kept, word])) <= width:
            kept.append(word)
    return kept


def memory_in_words(device: torch.device) -> str:
    """The memory that is in use: of a GPU with all that it has, elsewhere of this process."""
    used = f"{memory_used(device) / 1e9:.1f}"
    if device.type == "cuda":
        return f"{used} of {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB"
    return f"{used} GB"


def memory_used(device: torch.device) -> int:
    """The bytes that are in use: of a GPU those that torch reserved, elsewhere those of this process."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def _move_log(before: TextIO, after: TextIO) -> None:
    """Let the log lines that go to one stream go to another one."""
    for handler in logging.getLogger("llmcls").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(after)
