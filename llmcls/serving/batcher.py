"""Texts of many requests, gathered into forward passes.

Threads run one pass after the other. While all are busy, requests wait; the next pass takes texts from all of them in
turn until the budget of tokens is full. So a pass is never delayed to wait for more texts, passes fill up under load,
and a request with many texts does not hold up one with few.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np

log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that is not answered, because too many wait or the server stops; the message says which."""


@dataclass(frozen=True)
class Lane:
    """Where the texts of one run are scored.

    Attributes
    ----------
    score : callable
        Token ids of texts, and the number of passes that run now, this one included, to float32 [texts, labels].
    max_tokens : int
        Tokens of the texts that are scored together. A longer text is scored alone.
    base : hashable, optional
        Lanes with the same one are never scored at the same time. Several passes of one lane are.
    """

    score: Callable[[list[np.ndarray], int], np.ndarray]
    max_tokens: int
    base: Hashable = None


@dataclass(eq=False)
class _Request:
    """The texts of a request: how many are taken into a pass, and what was found for them."""

    tokens: Sequence[np.ndarray]
    future: Future[np.ndarray] = field(default_factory=Future)
    taken: int = 0
    found: dict[int, np.ndarray] = field(default_factory=dict)


class Batcher:
    """Gathers texts into passes and scores them in threads of its own.

    Parameters
    ----------
    lanes : dict
        By name of the run. Texts of different lanes are never scored together, and lanes take turns.
    max_waiting : int
        Texts that may wait. Requests beyond that are refused.
    passes : int
        Passes that may run at the same time.
    """

    def __init__(self, lanes: Mapping[str, Lane], max_waiting: int, passes: int = 1) -> None:
        self.lanes, self.max_waiting, self.waiting = dict(lanes), max_waiting, 0
        self._queues: dict[str, deque[_Request]] = {name: deque() for name in lanes}
        self._running: list[str] = []
        # Its lock is reentrant, so `stop` may be called by a signal handler that interrupts `submit`.
        self._changed = threading.Condition()
        self._stopping, self._deadline = False, math.inf
        self._threads = [
            threading.Thread(target=self._run, name=f"llmcls-scoring-{i}", daemon=True) for i in range(passes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stopping(self) -> bool:
        """Whether new requests are refused because the server stops."""
        return self._stopping

    def submit(self, lane: str, tokens: Sequence[np.ndarray]) -> Future[np.ndarray]:
        """Ask for the probabilities of texts.

        Parameters
        ----------
        lane : str
        tokens : sequence of int32 [length]
            Token ids of at least one text.

        Returns
        -------
        Future of float32 [texts, labels]
            Its exception is `Refused` if the server stops before. If it is cancelled, its texts are not scored.

        Raises
        ------
        Refused
            If too many texts wait, or the server stops.
        """
        request = _Request(tokens)
        with self._changed:
            if self._stopping:
                raise Refused("the server is stopping; ask another one")
            if self.waiting + len(tokens) > self.max_waiting:
                raise Refused(f"{self.waiting} texts are waiting already; try again later")
            self.waiting += len(tokens)
            self._queues[lane].append(request)
            self._changed.notify()
        return request.future

    def stop(self, seconds: float) -> None:
        """Refuse new requests from now on, and after ``seconds`` those that still wait. Returns at once."""
        with self._changed:
            self._stopping, self._deadline = True, time.monotonic() + seconds
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the threads to end, after `stop`."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (found := self._wait_for_pass()) is not None:
            name, taken, running = found
            try:
                self._score(self.lanes[name], taken, running)
            finally:
                with self._changed:
                    self._running.remove(name)
                    # Lanes over the same base may have waited for this pass.
                    self._changed.notify_all()

    def _wait_for_pass(self) -> tuple[str, list[tuple[_Request, int]], int] | None:
        """The lane and texts of the next pass, and how many run with it; None at the end."""
        with self._changed:
            while True:
                if self._stopping and time.monotonic() >= self._deadline:
                    self._refuse_all()
                if self._stopping and not any(self._queues.values()):
                    return None
                name = self._next_lane()
                if name is None:
                    self._changed.wait()
                    continue
                # The lane goes to the end, so that the others have their turn.
                self._queues[name] = self._queues.pop(name)
                taken = self._take(name)
                if taken:
                    self._running.append(name)
                    # What is left is for another thread.
                    self._changed.notify()
                    return name, taken, len(self._running)

    def _next_lane(self) -> str | None:
        """The first lane with texts whose base no other lane uses or has waited for longer; None if there is none."""
        used = {self.lanes[name].base: name for name in self._running}
        for name, queue in self._queues.items():
            base = self.lanes[name].base
            if queue and (base is None or used.get(base, name) == name):
                return name
            if queue:
                # It is the next over this base: the lane that it waits for starts no further pass.
                used[base] = name
        return None

    def _take(self, name: str) -> list[tuple[_Request, int]]:
        """The texts of the next pass: requests take turns, one text each, until the budget is full."""
        queue, tokens = self._queues[name], 0
        taken: list[tuple[_Request, int]] = []
        while queue:
            request = queue[0]
            if request.future.cancelled():
                self.waiting -= len(request.tokens) - request.taken
                queue.popleft()
                continue
            length = len(request.tokens[request.taken])
            if taken and tokens + length > self.lanes[name].max_tokens:
                break
            taken.append((request, request.taken))
            tokens += length
            request.taken += 1
            self.waiting -= 1
            queue.rotate(-1)
            if request.taken == len(request.tokens):
                queue.pop()
        return taken

    def _score(self, lane: Lane, taken: list[tuple[_Request, int]], running: int) -> None:
        """Score one pass, and answer the requests that are complete with it."""
        try:
            rows = lane.score([request.tokens[i] for request, i in taken], running)
        except Exception as error:
            log.exception("a pass of %d texts failed", len(taken))
            with self._changed:
                for request, _ in taken:
                    _settle(request, error)
                    self._drop(request)
            return
        complete = []
        with self._changed:
            for (request, i), row in zip(taken, rows, strict=True):
                request.found[i] = row
                if len(request.found) == len(request.tokens):
                    complete.append(request)
        for request in complete:
            _settle(request, np.stack([request.found[k] for k in range(len(request.tokens))]))

    def _drop(self, request: _Request) -> None:
        """Take a failed request out of its queue, if texts of it still wait."""
        for queue in self._queues.values():
            if request in queue:
                queue.remove(request)
                self.waiting -= len(request.tokens) - request.taken

    def _refuse_all(self) -> None:
        for queue in self._queues.values():
            for request in queue:
                _settle(request, Refused("the server stopped before these texts were classified; ask another one"))
            queue.clear()
        self.waiting = 0


def _settle(request: _Request, outcome: np.ndarray | Exception) -> None:
    """Give a request its answer or error, unless it has one or was cancelled."""
    try:
        if isinstance(outcome, Exception):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)
    except InvalidStateError:
        pass
