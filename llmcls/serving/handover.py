"""Results of threads, brought to the event loop that waits for them.

Waking an event loop from a thread costs more than an answer. All results that are ready share one awakening.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any


class Handover:
    """Brings results to one event loop.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The running one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._ready: list[tuple[asyncio.Future[Any], Future[Any]]] = []

    def wrap(self, future: Future[Any]) -> asyncio.Future[Any]:
        """A future of the event loop with the outcome of one of a thread, like `asyncio.wrap_future`.

        If it is cancelled, the other one is too.
        """
        waiting = self.loop.create_future()
        waiting.add_done_callback(lambda _: future.cancel() if waiting.cancelled() else None)
        future.add_done_callback(lambda _: self._put(waiting, future))
        return waiting

    def _put(self, waiting: asyncio.Future[Any], future: Future[Any]) -> None:
        with self._lock:
            self._ready.append((waiting, future))
            first = len(self._ready) == 1
        # After the end of the loop nobody waits.
        if first and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        with self._lock:
            ready, self._ready = self._ready, []
        for waiting, future in ready:
            if waiting.done():
                continue
            if future.cancelled():
                waiting.cancel()
            elif (error := future.exception()) is not None:
                waiting.set_exception(error)
            else:
                waiting.set_result(future.result())
