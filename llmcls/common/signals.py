"""Stop requests: Ctrl-C, a batch system close to its limit, or a launcher that is gone.

While a run takes steps, a request lets the current step finish, so that it can be saved; before and afterwards there is
nothing to save, and it ends the command where it is. A second Ctrl-C ends the process at once, whatever it does. A
batch system may send its signal several times; that asks for the same each time.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Exit code of `llmcls.train` after a signal of a batch system; the same command then resumes.
EXIT_INTERRUPTED = 85
# After Ctrl-C, as shells expect it.
EXIT_BY_KEYBOARD = 130

# Environment variable, set by `llmcls.rehearse`: stop after this many optimizer steps, as if a signal had arrived.
STOP_AFTER = "LLMCLS_STOP_AFTER"

# The terminal sends Ctrl-C to launcher and ranks, and the launcher sends it to the ranks once more.
SECONDS_OF_ONE_INTERRUPT = 0.3
SECONDS_OF_ONE_INTERRUPT_OF_A_LAUNCHER = 3.0
# What the ranks may take to save and end after their launcher is gone.
SECONDS_WITHOUT_LAUNCHER = 600.0
# What they may take where nothing has to be saved: torch ignores an interrupt while it connects the ranks.
SECONDS_WITHOUT_LAUNCHER_OR_STEPS = 30.0

_KEYBOARD = [getattr(signal, name) for name in ("SIGINT", "SIGBREAK") if hasattr(signal, name)]
_BATCH = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]

# Read before the imports of a command, which take seconds: its launcher may be gone when it takes over signals.
_PARENT = os.getppid()

_received: list[int] = []
_stepping = False
_watching = False
# An interrupt was raised where Python ignores exceptions, such as in the callback of a weak reference.
_lost = False


class Interrupted(Exception):
    """Training stopped on a signal, after `checkpoints/last` was written."""


def watch_signals() -> None:
    """Take over SIGINT, SIGTERM and SIGUSR1 (SIGBREAK on Windows), and watch the launcher. Main thread only."""
    global _watching
    _received.clear()
    for number in (*_KEYBOARD, *_BATCH):
        signal.signal(number, _record)
    if _watching:
        return
    _watching = True
    sys.unraisablehook = _notice_lost_interrupts
    # Python runs its handlers between two instructions of the main thread, which may be waiting for another rank. The
    # numbers of signals reach this socket at once, and a thread that reads them.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    launcher = _PARENT if is_launched() else None
    threading.Thread(target=_watch, args=(reader, writer, launcher), daemon=True, name="llmcls signals").start()


@contextmanager
def stops_between_steps() -> Iterator[None]:
    """Within this context, the first signal is only recorded: the body asks `stop_requested` and saves."""
    global _stepping
    _stepping = True
    try:
        yield
    finally:
        _stepping = False


def stop_requested() -> bool:
    """Whether this process received a signal to stop. Other ranks may not have received it."""
    return bool(_received)


def stop_planned(step: int) -> bool:
    """Whether every rank should stop, now that ``step`` optimizer steps are done."""
    return step == int(os.environ.get(STOP_AFTER, "-1"))


def signal_name() -> str:
    """The signal that asked to stop, for messages."""
    return signal.Signals(_received[0]).name if _received else "a signal"


def interrupted_code(unknown: int = EXIT_BY_KEYBOARD) -> int:
    """The exit code of a command that was stopped; ``unknown`` if this process received no signal, but another rank."""
    if not _received:
        return unknown
    return EXIT_BY_KEYBOARD if all(number in _KEYBOARD for number in _received) else EXIT_INTERRUPTED


def _record(number: int, _frame: FrameType | None) -> None:
    global _lost
    if not _lost:
        _received.append(number)
    _lost = False
    if not _stepping:
        raise KeyboardInterrupt


def _notice_lost_interrupts(ignored: sys.UnraisableHookArgs) -> None:
    """Let the thread of `_watch` ask again for a stop that Python ignored."""
    global _lost
    if isinstance(ignored.exc_value, KeyboardInterrupt) and _received:
        _lost = True
    else:
        sys.__unraisablehook__(ignored)


def _watch(reader: socket.socket, _writer: socket.socket, launcher: int | None) -> None:
    """End the process at a second Ctrl-C; stop it if its launcher is gone. Runs in a thread; keeps the sockets open."""
    pressed, alone_since, stepped = 0.0, 0.0, 0.0
    while True:
        ready, _, _ = select.select([reader], [], [], 1.0)
        now = time.monotonic()
        if _stepping:
            stepped = now
        for number in reader.recv(64) if ready else b"":
            if number not in _KEYBOARD:
                continue
            same = SECONDS_OF_ONE_INTERRUPT_OF_A_LAUNCHER if is_launched() else SECONDS_OF_ONE_INTERRUPT
            if not pressed:
                pressed = now
                if _stepping:
                    _say("saving after the current step; press Ctrl-C again to end at once")
            elif now - pressed > same:
                _say("ended at once; the same command resumes from the last checkpoint")
                os._exit(EXIT_BY_KEYBOARD)
        if _lost:
            os.kill(os.getpid(), signal.SIGTERM)
        if launcher is not None and os.getppid() != launcher:
            if not alone_since:
                alone_since = now
                _say("the launcher is gone; saving and ending")
                os.kill(os.getpid(), signal.SIGTERM)
            elif now - alone_since > SECONDS_WITHOUT_LAUNCHER or (
                not _stepping and now - max(alone_since, stepped) > SECONDS_WITHOUT_LAUNCHER_OR_STEPS
            ):
                os._exit(EXIT_INTERRUPTED)


def is_launched() -> bool:
    """Whether `accelerate launch` or torchrun started this process, and waits for it."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def _say(text: str) -> None:
    """Write a line to stderr from a thread, once for all ranks."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())
