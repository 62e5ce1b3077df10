"""Signs of life: what this process does, and how often it began something else.

Whoever works for long calls `beat` between two pieces of work. `llmcls.training.watchdog` notices when that stops.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Pulse:
    """What a process does.

    Attributes
    ----------
    beats : int
        How often it began something else.
    doing : str
    waits : bool
        Whether it waits for a process that is watched itself, and may take as long as that one.
    """

    beats: int
    doing: str
    waits: bool


_beats = 0
_doing: tuple[str, int | None] = ("starting", None)
_waiting = 0


def beat(doing: str, number: int | None = None) -> None:
    """Note that this process makes progress. It is called in every pass over a model, so it does next to nothing.

    Parameters
    ----------
    doing : str
        What it does from now on.
    number : int, optional
        Put behind it.
    """
    global _beats, _doing
    _beats += 1
    _doing = doing, number


def pulse() -> Pulse:
    """The state of this process, from any thread."""
    doing, number = _doing
    return Pulse(_beats, doing if number is None else f"{doing} {number}", _waiting > 0)


@contextmanager
def waiting() -> Iterator[None]:
    """Within this context, the process waits for another one, which is watched itself."""
    global _waiting
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
