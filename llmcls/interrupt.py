"""Being told to stop: SIGUSR1 and SIGTERM (preemption, a time limit near) let the running step finish."""

from __future__ import annotations

import signal
from types import FrameType

# What `llmcls.train` exits with after it saved itself; the same command then goes on.
EXIT_INTERRUPTED = 85

_received: list[int] = []


class Interrupted(Exception):
    """Training stopped on a signal, after saving `checkpoints/last`."""


def watch_signals() -> None:
    """Note SIGTERM and SIGUSR1 (SIGBREAK on Windows) instead of dying of them. Main thread only."""
    for name in ("SIGTERM", "SIGUSR1", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _note)


def stop_requested() -> bool:
    """Whether this process was told to stop since `watch_signals`."""
    return bool(_received)


def _note(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
