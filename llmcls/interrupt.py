"""Being told to stop: SIGUSR1 and SIGTERM (preemption, a time limit near) let the running step finish."""

from __future__ import annotations

import os
import signal
from types import FrameType

# What `llmcls.train` exits with after it saved itself; the same command then goes on.
EXIT_INTERRUPTED = 85

# Set by `llmcls.rehearse`: stop after this many optimizer steps, as if a signal had come then.
STOP_AFTER = "LLMCLS_STOP_AFTER"

_received: list[int] = []


class Interrupted(Exception):
    """Training stopped on a signal, after saving `checkpoints/last`."""


def watch_signals() -> None:
    """Note SIGTERM and SIGUSR1 (SIGBREAK on Windows) instead of dying of them. Main thread only."""
    for name in ("SIGTERM", "SIGUSR1", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _note)


def stop_requested(step: int) -> bool:
    """Whether this process was told to stop since `watch_signals`, now that ``step`` optimizer steps are done."""
    return bool(_received) or step == int(os.environ.get(STOP_AFTER, "-1"))


def _note(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
