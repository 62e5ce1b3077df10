"""Preparing batches in a thread while the device computes the one before.

Only CUDA gains from it: there the host has to have the next kernels ready before the device runs out of work. On a CPU
the items are prepared in the calling thread: that takes a tenth of a millisecond of a step that takes seconds.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

# Items that wait for the consumer; one more is being prepared.
DEPTH = 2


@dataclass
class _Item(Generic[T]):
    """A prepared value, the end of the values, or the error that ended them."""

    value: T | None = None
    end: bool = False
    error: BaseException | None = None


def depth_for(device: torch.device) -> int:
    """How many items to prepare ahead of a computation on ``device``; 0 means none, and no thread."""
    return DEPTH if device.type == "cuda" else 0


@contextmanager
def ahead(items: Iterable[T], depth: int, device: torch.device | None = None) -> Iterator[Iterator[T]]:
    """Iterate in a thread that is at most ``depth`` + 1 items ahead; the values and their order are the same.

    The thread has ended when the context is left, however it is left. An exception of ``items`` is raised where its
    value would have been taken.

    Parameters
    ----------
    items : iterable
        Used by the thread alone until the context is left.
    depth : int
        0 iterates in the calling thread.
    device : torch.device, optional
        The GPU that the thread uses. A new thread would use the first one, and pinning memory would then open a
        context there for every process of the machine.

    Yields
    ------
    iterator

    Examples
    --------
    >>> with ahead(range(3), depth=2) as values:
    ...     list(values)
    [0, 1, 2]
    """
    if depth == 0:
        yield iter(items)
        return
    prepared: queue.Queue[_Item[T]] = queue.Queue(depth)
    stopping = threading.Event()

    def hand_over(item: _Item[T]) -> None:
        while not stopping.is_set():
            try:
                prepared.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def prepare() -> None:
        try:
            # Without a number it is the GPU of a single process, which is the first one.
            if device is not None and device.type == "cuda" and device.index is not None:
                torch.cuda.set_device(device)
            for value in items:
                hand_over(_Item(value))
                if stopping.is_set():
                    return
            hand_over(_Item(end=True))
        except BaseException as error:
            hand_over(_Item(error=error))

    def take() -> Iterator[T]:
        while True:
            item = prepared.get()
            if item.error is not None:
                raise item.error
            if item.end:
                return
            yield item.value  # type: ignore[misc]

    thread = threading.Thread(target=prepare, name="llmcls-batches", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stopping.set()
        # A thread that waits for room looks at the event ten times a second; this lets it look at once.
        while not prepared.empty():
            prepared.get_nowait()
        thread.join()
