from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest

from llmcls.serving.batcher import Batcher, Lane, Refused


class Passes:
    """A stand-in for a model: the sum of the ids of each text, once it is released."""

    def __init__(self) -> None:
        self.texts: list[list[int]] = []
        self.started, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, tokens: list[np.ndarray], running: int) -> np.ndarray:
        self.texts.append([int(text[0]) for text in tokens])
        self.started.release()
        assert self.go_on.acquire(timeout=30)
        if any(text[0] < 0 for text in tokens):
            raise ValueError("a negative id")
        return np.array([[text.sum()] for text in tokens], dtype=np.float32)


@pytest.fixture
def passes() -> Passes:
    return Passes()


@pytest.fixture
def batcher(passes: Passes) -> Iterator[Batcher]:
    lanes = {"a": Lane(passes, 10), "b": Lane(passes, 10)}
    made = Batcher(lanes, max_waiting=20)
    yield made
    made.stop(0)
    passes.go_on.release(100)
    made.join()


def texts(*ids: int, length: int = 1) -> list[np.ndarray]:
    return [np.full(length, i, dtype=np.int32) for i in ids]


def hold(batcher: Batcher, passes: Passes) -> Future[np.ndarray]:
    """Start a pass that lasts until `go_on`."""
    first = batcher.submit("a", texts(99))
    assert passes.started.acquire(timeout=30)
    return first


def answers(*futures: Future[np.ndarray]) -> list[list[float]]:
    assert not wait(futures, timeout=30).not_done
    return [future.result()[:, 0].tolist() for future in futures]


def test_what_waits_during_a_pass_is_scored_in_the_next(batcher: Batcher, passes: Passes) -> None:
    first = hold(batcher, passes)
    others = [batcher.submit("a", texts(i, length=2)) for i in range(1, 5)]
    passes.go_on.release(9)
    assert answers(first, *others) == [[99], [2], [4], [6], [8]]
    assert passes.texts == [[99], [1, 2, 3, 4]]


def test_a_pass_has_no_more_tokens_than_its_budget_but_at_least_one_text(batcher: Batcher, passes: Passes) -> None:
    first = hold(batcher, passes)
    others = [batcher.submit("a", texts(1, length=30)), batcher.submit("a", texts(2, 3, 4, length=4))]
    passes.go_on.release(9)
    answers(first, *others)
    assert passes.texts == [[99], [1], [2, 3], [4]]


def test_a_request_with_many_texts_does_not_hold_up_a_small_one(batcher: Batcher, passes: Passes) -> None:
    first = hold(batcher, passes)
    large, small = batcher.submit("a", texts(*range(1, 9), length=5)), batcher.submit("a", texts(50, length=5))
    passes.go_on.release(2)
    assert answers(first, small) == [[99], [250]]
    assert not large.done()
    passes.go_on.release(9)
    assert answers(large) == [[5 * i for i in range(1, 9)]], "in the order of the request"


def test_runs_are_scored_apart_and_take_turns(batcher: Batcher, passes: Passes) -> None:
    first = hold(batcher, passes)
    others = [batcher.submit("a", texts(1, 2, 3, length=9)), batcher.submit("b", texts(4, 5, length=9))]
    passes.go_on.release(9)
    answers(first, *others)
    assert passes.texts == [[99], [4], [1], [5], [2], [3]]


def test_too_many_waiting_texts_are_refused(batcher: Batcher, passes: Passes) -> None:
    hold(batcher, passes)
    batcher.submit("a", texts(*range(19)))
    with pytest.raises(Refused, match="19 texts are waiting already"):
        batcher.submit("b", texts(1, 2))
    batcher.submit("b", texts(1))


def test_a_cancelled_request_is_not_scored(batcher: Batcher, passes: Passes) -> None:
    first = hold(batcher, passes)
    gone, other = batcher.submit("a", texts(1, 2)), batcher.submit("a", texts(3))
    gone.cancel()
    passes.go_on.release(9)
    assert answers(first, other) == [[99], [3]]
    assert passes.texts == [[99], [3]]
    assert batcher.waiting == 0


def test_a_pass_that_fails_fails_its_requests_only(batcher: Batcher, passes: Passes) -> None:
    first = hold(batcher, passes)
    bad, good = batcher.submit("a", texts(-1, 1, 2, length=9)), batcher.submit("a", texts(3, length=9))
    passes.go_on.release(9)
    assert answers(first, good) == [[99], [27]]
    with pytest.raises(ValueError, match="a negative id"):
        bad.result(timeout=30)
    assert passes.texts == [[99], [-1], [3]], "the rest of the failed request is left out"
    assert batcher.waiting == 0


@pytest.mark.parametrize("seconds", [0, 60])
def test_at_the_end_what_was_accepted_is_answered_in_time_or_refused(
    seconds: float, batcher: Batcher, passes: Passes
) -> None:
    first = hold(batcher, passes)
    other = batcher.submit("b", texts(7))
    batcher.stop(seconds)
    with pytest.raises(Refused, match="the server is stopping"):
        batcher.submit("a", texts(1))
    passes.go_on.release(9)
    outcome: Any = answers(first)
    if seconds:
        outcome += answers(other)
    else:
        assert isinstance(other.exception(timeout=30), Refused)
    batcher.join()
    assert outcome == ([[99], [7]] if seconds else [[99]])


class TwoPasses:
    """A batcher that runs two passes at the same time; "a" and "b" are over the same base."""

    def __init__(self, passes: Passes) -> None:
        self.running: list[int] = []

        def score(tokens: list[np.ndarray], running: int) -> np.ndarray:
            self.running.append(running)
            return passes(tokens, running)

        lanes = {"a": Lane(score, 10, "base"), "b": Lane(score, 10, "base"), "c": Lane(score, 10)}
        self.batcher = Batcher(lanes, max_waiting=20, passes=2)


@pytest.fixture
def two(passes: Passes) -> Iterator[TwoPasses]:
    made = TwoPasses(passes)
    yield made
    made.batcher.stop(0)
    passes.go_on.release(100)
    made.batcher.join()


def test_two_passes_run_at_the_same_time_and_know_it(two: TwoPasses, passes: Passes) -> None:
    whole = two.batcher.submit("a", texts(1, 2, 3, length=9))
    for _ in range(2):
        assert passes.started.acquire(timeout=30)
    assert not passes.started.acquire(timeout=0.2), "a third one waits"
    assert two.running == [1, 2]
    passes.go_on.release(9)
    assert answers(whole) == [[9, 18, 27]], "the texts of a request, in passes that ended in any order"


def test_lanes_over_the_same_base_are_never_scored_at_the_same_time(two: TwoPasses, passes: Passes) -> None:
    first = hold(two.batcher, passes)
    other = two.batcher.submit("b", texts(1))
    assert not passes.started.acquire(timeout=0.2), "the base is in use"
    apart = two.batcher.submit("c", texts(2))
    assert passes.started.acquire(timeout=30), "a run with a base of its own does not wait"
    passes.go_on.release(9)
    assert answers(first, other, apart) == [[99], [1], [2]]


def test_a_lane_that_waits_for_its_base_is_the_next_over_it(two: TwoPasses, passes: Passes) -> None:
    first = hold(two.batcher, passes)
    other = two.batcher.submit("b", texts(1))
    more = two.batcher.submit("a", texts(2))
    assert not passes.started.acquire(timeout=0.2), "no other pass of the lane that runs"
    passes.go_on.release(1)
    for _ in range(2):
        assert passes.started.acquire(timeout=30)
        passes.go_on.release(1)
    answers(first, other, more)
    assert passes.texts == [[99], [1], [2]]


def test_at_the_end_all_threads_end_though_one_waits_for_a_base(two: TwoPasses, passes: Passes) -> None:
    first = hold(two.batcher, passes)
    other = two.batcher.submit("b", texts(1))
    two.batcher.stop(60)
    passes.go_on.release(9)
    assert answers(first, other) == [[99], [1]]
    two.batcher.join()
