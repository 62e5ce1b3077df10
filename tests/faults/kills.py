"""Kills of a process at an enumerated file operation."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

# What Python tells an audit hook before it changes a disk. Libraries in other languages do not, but what they write has
# a temporary name.
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}


def kill_this_process_at(number: int) -> None:
    """Let this process be killed just before its file operation of this number, from 0. For the rest of its life."""
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if _changes_a_disk(event, arguments):
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    sys.addaudithook(count)


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do some work in a copy of this process that is killed at a file operation; whether it came that far.

    Raises
    ------
    RuntimeError
        If the work raised an exception.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            kill_this_process_at(number)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError("the work failed")
    return False


def count_operations(path: os.PathLike[str]) -> None:
    """Write to a file how many such operations this process does until its end."""
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        done += _changes_a_disk(event, arguments)

    def note() -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(done))

    sys.addaudithook(count)
    atexit.register(note)


def _changes_a_disk(event: str, arguments: tuple[Any, ...]) -> bool:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    return event in CHANGES or bool(writes)
