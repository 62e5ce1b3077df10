"""A rank that makes no step any more: every rank says where it waits, the main process names the one behind, all end.

A rank that hangs lets the others wait in the next exchange, for as long as the libraries allow, and nobody learns which
one it was. Here a thread of each rank counts the time without a sign of life (`llmcls.common.heartbeat`).

The thread of a rank cannot run while code in another language holds Python's lock. Then the other ranks end the job.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from llmcls.common.files import read_json, write_json
from llmcls.common.heartbeat import beat, pulse
from llmcls.common.secrets import redacted
from llmcls.common.user_error import UserError
from llmcls.results.run_folder import PROGRESS, RunFolder

log = logging.getLogger("llmcls.train")

# Exit code of a rank that was stuck, or waited for one.
EXIT_STUCK = 86
# How often a rank looks for a sign of its own life, and how often it shows one to the others.
SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_SIGNS = 5.0, 60.0
# The other ranks leave the main process this time to name the one behind, before they end and the launcher ends it.
SECONDS_TO_TELL, SECONDS_TO_LISTEN = 20.0, 10.0
# Innermost calls of a stack that are shown.
CALLS = 12


@dataclass(frozen=True)
class Sign:
    """What a rank shows to the others.

    Attributes
    ----------
    rank : int
    host : str
    beats : int
        How often it began something else. Ranks do the same work, so the one with the fewest is behind.
    waits : bool
        Whether it waits for a rank that does something for all.
    doing : str
    stack : list of str
        Where its main thread is, innermost call last; empty unless it has noticed that it is stuck.
    """

    rank: int
    host: str
    beats: int
    waits: bool
    doing: str
    stack: list[str]

    def __str__(self) -> str:
        waits = ", waits for another rank" if self.waits else ""
        return f"rank {self.rank} on {self.host}: {self.doing}{waits}, {self.beats} signs of life"


@contextmanager
def watched(run: RunFolder, minutes: float, accelerator: Accelerator) -> Iterator[None]:
    """Within this context, the process ends if it gives no sign of life for some minutes.

    Parameters
    ----------
    run : RunFolder
        Where ranks show their signs, while there are several.
    minutes : float
        0 watches nothing.
    accelerator : Accelerator
    """
    if not minutes:
        yield
        return
    watchdog = _Watchdog(run, 60 * minutes, accelerator.process_index, accelerator.num_processes)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


class _Watchdog:
    """The threads that watch one rank; see `watched`.

    Parameters
    ----------
    run : RunFolder
    limit : float
        Seconds.
    rank, ranks : int
    """

    def __init__(self, run: RunFolder, limit: float, rank: int, ranks: int) -> None:
        self._run, self._limit, self._rank, self._ranks = run, limit, rank, ranks
        self._main = threading.get_ident()
        self._done, self._writing, self._told = threading.Event(), threading.Lock(), False
        names = {"llmcls watchdog": self._watch} | ({"llmcls signs of life": self._show} if ranks > 1 else {})
        self._threads = [threading.Thread(target=work, name=name, daemon=True) for name, work in names.items()]

    def start(self) -> None:
        beat("starting")
        if self._rank == 0:
            # What ranks left that were killed.
            shutil.rmtree(_file(self._run, 0).parent, ignore_errors=True)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            # A file system that does not answer must not keep the run from its end.
            thread.join(SECONDS_TO_TELL)
        with suppress(OSError):
            _file(self._run, self._rank).unlink(missing_ok=True)
            _file(self._run, self._rank).parent.rmdir()

    def _watch(self) -> None:
        """End the process if it gives no sign of life. Runs in a thread."""
        look, quiet, last = min(SECONDS_BETWEEN_LOOKS, self._limit / 4), 0.0, pulse()
        since = time.monotonic()
        while not self._done.wait(look):
            now, seen = time.monotonic(), pulse()
            # A process that was stopped as a whole, or a machine that slept, counts as one look.
            quiet = quiet + min(now - since, 2 * look) if seen.beats == last.beats and not seen.waits else 0.0
            since, last = now, seen
            if quiet >= self._limit:
                self._end()
                return

    def _end(self) -> None:
        """Say where this rank waits, let the main process name the one behind, and end."""
        sign = self._sign(_stack(self._main))
        for_how_long = f"no sign of life for {self._limit / 60:g} minutes (train.stuck_minutes)"
        _say(f"{sign}; {for_how_long}; its main thread is in:\n{_indented(sign.stack)}")
        # In a thread, because the disk may be what all wait for.
        teller = threading.Thread(target=self._tell, args=(sign, for_how_long), daemon=True)
        teller.start()
        teller.join(SECONDS_TO_TELL)
        if self._rank and self._done.wait(SECONDS_TO_TELL):
            return
        end_process(EXIT_STUCK)

    def _tell(self, sign: Sign, for_how_long: str) -> None:
        """Write where this rank waits; on the main process, write to the log of the run who is behind."""
        if self._ranks > 1:
            with self._writing:
                self._told = True
                write_json(_file(self._run, self._rank), asdict(sign))
        if self._rank:
            return
        deadline = time.monotonic() + SECONDS_TO_LISTEN
        signs = {0: sign}
        while time.monotonic() < deadline and not all(r in signs and signs[r].stack for r in range(self._ranks)):
            signs |= {r: s for r in range(1, self._ranks) if (s := _read(self._run, r)) is not None}
            time.sleep(0.1)
        log.error(
            "%s; %s; the run ends with exit code %d, and the same command resumes it from %s",
            _who_is_behind(signs, self._ranks), for_how_long, EXIT_STUCK, _last_checkpoint(self._run),
        )  # fmt: skip
        for one in signs.values():
            log.error("%s\n%s", one, _indented(one.stack) or "  (it does not answer)")

    def _show(self) -> None:
        """Show signs of life to the other ranks. Runs in a thread of its own, which a slow disk may stop."""
        while not self._done.wait(min(SECONDS_BETWEEN_SIGNS, self._limit / 3)):
            with self._writing, suppress(OSError, UserError):
                if not self._told:
                    write_json(_file(self._run, self._rank), asdict(self._sign([])))

    def _sign(self, stack: list[str]) -> Sign:
        now = pulse()
        return Sign(self._rank, socket.gethostname(), now.beats, now.waits, now.doing, stack)


def end_process(code: int) -> None:
    """End this process, whose main thread does not answer."""
    os._exit(code)


def _who_is_behind(signs: dict[int, Sign], ranks: int) -> str:
    """The rank that the others wait for, in words."""
    silent = [rank for rank in range(ranks) if rank not in signs]
    if silent:
        return f"rank {silent[0]} is behind: it gives no sign at all"
    behind = min(signs.values(), key=lambda sign: (sign.waits, sign.beats))
    if ranks == 1:
        return f"the run is stuck: {behind.doing}"
    if all((sign.waits, sign.beats) == (behind.waits, behind.beats) for sign in signs.values()):
        return f"all {ranks} ranks wait at the same place: {behind.doing}"
    return f"rank {behind.rank} on {behind.host} is behind: {behind.doing}"


def _last_checkpoint(run: RunFolder) -> str:
    try:
        return f"{run.last_checkpoint} (step {read_json(run.last_checkpoint / PROGRESS)['step']})"
    except (OSError, UserError, KeyError, TypeError):
        return "its beginning, because there is no checkpoint yet"


def _stack(thread: int) -> list[str]:
    """The innermost calls of a thread: file, line and function."""
    frame = sys._current_frames().get(thread)
    calls = traceback.extract_stack(frame)[-CALLS:] if frame is not None else []
    return [f"{'/'.join(Path(call.filename).parts[-3:])}:{call.lineno} {call.name}" for call in calls]


def _indented(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _file(run: RunFolder, rank: int) -> Path:
    return run.path / "heartbeats" / f"rank_{rank}.json"


def _read(run: RunFolder, rank: int) -> Sign | None:
    """What a rank shows; None if it shows nothing that can be read."""
    try:
        saved: Any = read_json(_file(run, rank))
        return Sign(**saved)
    except (OSError, UserError, TypeError):
        return None


def _say(text: str) -> None:
    """Write to stderr from a thread; the main thread may hold the locks of what is above it."""
    with suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{redacted(text)}\n".encode())
