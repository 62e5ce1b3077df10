"""Stop requests: SIGTERM and SIGUSR1 (preemption, a time limit close by) let the current step finish first."""

from __future__ import annotations

import os
import signal
from types import FrameType

# Exit code of `llmcls.train` after it saved a checkpoint on a signal; the same command then resumes.
EXIT_INTERRUPTED = 85

# Environment variable, set by `llmcls.rehearse`: stop after this many optimizer steps, as if a signal had arrived.
STOP_AFTER = "LLMCLS_STOP_AFTER"

_received: list[int] = []


class Interrupted(Exception):
    """Training stopped on a signal, after `checkpoints/last` was written."""


def watch_signals() -> None:
    """Record SIGTERM and SIGUSR1 (SIGBREAK on Windows) instead of ending the process. Main thread only."""
    for name in ("SIGTERM", "SIGUSR1", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _record)


def stop_requested() -> bool:
    """Whether this process received a signal to stop. Other ranks may not have received it."""
    return bool(_received)


def stop_planned(step: int) -> bool:
    """Whether every rank should stop, now that ``step`` optimizer steps are done."""
    return step == int(os.environ.get(STOP_AFTER, "-1"))


def _record(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
