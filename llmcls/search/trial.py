"""A trial: one training in processes of its own, watched over its metrics.jsonl, and ended early if it falls behind."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from llmcls.common.files import read_json
from llmcls.common.signals import EXIT_BY_KEYBOARD, EXIT_INTERRUPTED, Interrupted
from llmcls.results.lock import in_use
from llmcls.results.run_folder import RunFolder

# What a training may take to save after it was asked to end.
SECONDS_TO_END = 120.0
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass
class Outcome:
    """How a trial ended.

    Attributes
    ----------
    value : float, optional
        The metric on validation, with the decisions of the finished run. None if it was not trained to its end.
    failure : str, optional
        The error, if there was one.
    """

    value: float | None = None
    failure: str | None = None


@dataclass
class Evaluations:
    """Reads the evaluations of a run from its metrics.jsonl, while it is written.

    Attributes
    ----------
    path : Path
    metric : str
    seen : int
        Evaluations that were read.
    """

    path: Path
    metric: str
    seen: int = 0
    _steps: set[int] = field(default_factory=set)

    def new(self) -> list[float]:
        """The values since the last call; a step that was evaluated again after a resume counts once."""
        found = []
        with contextlib.suppress(FileNotFoundError), self.path.open(encoding="utf-8") as file:
            for text in file:
                # The last line may still be written.
                if not text.endswith("\n"):
                    break
                line = json.loads(text)
                if line["split"] == "validation" and line["step"] not in self._steps and self.metric in line:
                    self._steps.add(line["step"])
                    found.append(float(line[self.metric]))
        self.seen += len(found)
        return found


def train_trial(
    command: list[str], run: RunFolder, metric: str, is_behind: Callable[[int, float], bool] | None = None
) -> Outcome:
    """Train in a new process until it ends, or until it is behind.

    Parameters
    ----------
    command : list of str
        Starts the training.
    run : RunFolder
        What it trains. Its output is added to ``trial.log`` beside it.
    metric : str
        What an evaluation is measured by.
    is_behind : callable, optional
        From the number of an evaluation, from 0, and its value to whether the trial may end here.

    Raises
    ------
    Interrupted
        If the training was stopped by a signal; it can be resumed.
    """
    log = run.path.parent / "trial.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # A search that was killed may have left its training, which is as good as a new one.
    if in_use(run.experiment.lock):
        print(f"waiting for the training in {run.experiment.path}, which a search that ended has left", flush=True)
    while in_use(run.experiment.lock):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    evaluations = Evaluations(run.metrics_log, metric)
    with log.open("ab") as output:
        start = output.tell()
        code = _watch(command, output, evaluations, is_behind)
    if code is None:
        return Outcome()
    if code in (EXIT_INTERRUPTED, EXIT_BY_KEYBOARD):
        raise Interrupted("stopped by a signal; run the same command again to resume")
    if code:
        return Outcome(failure=_reason(log, start) or f"exit code {code}, see {log}")
    return Outcome(value=float(read_json(run.metrics)["validation"][metric]))


def _watch(
    command: list[str], output: IO[bytes], evaluations: Evaluations, is_behind: Callable[[int, float], bool] | None
) -> int | None:
    """Run a command; its exit code, or None if it was ended because it is behind."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(SECONDS_BETWEEN_LOOKS)
            first = evaluations.seen
            for number, value in enumerate(evaluations.new(), start=first):
                if is_behind is not None and is_behind(number, value):
                    return None
    finally:
        _end(process.pid)
        process.wait()


def _end(pid: int) -> None:
    """Let a process and all that it started save and end; kill what takes too long."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in reversed(family):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_END)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def _reason(log: Path, start: int) -> str | None:
    """The last error sentence in a log, from a position on."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    lines = [line for line in lines if line.strip()]
    found = errors or lines
    return found[-1] if found else None
