from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from llmcls.data.ahead import DEPTH, ahead, depth_for


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "llmcls-batches"]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_values_come_in_order_and_no_thread_is_left(depth: int) -> None:
    with ahead(iter(range(50)), depth) as values:
        assert list(values) == list(range(50))
    assert threads() == []


def test_the_next_values_are_made_in_another_thread_while_the_first_is_used_and_no_more_than_agreed() -> None:
    made, enough = [], threading.Event()

    def slow() -> Iterator[int]:
        for i in range(100):
            made.append(threading.current_thread().name)
            if len(made) == 4:
                enough.set()
            yield i

    with ahead(slow(), 2) as values:
        assert next(values) == 0
        assert enough.wait(10)
        # One is used, two wait, one is in the hand of the thread.
        assert not threading.Event().wait(0.3)
        assert made == ["llmcls-batches"] * 4
    assert threads() == []


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_where_its_value_would_have_come(depth: int) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no such row")

    with ahead(broken(), depth) as values:
        assert next(values) == 1
        with pytest.raises(ValueError, match="no such row"):
            next(values)
    assert threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_leaving_early_ends_the_thread(error: type[BaseException]) -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    def interrupted() -> None:
        with ahead(endless(), 1) as values:
            next(values)
            raise error

    with pytest.raises(error):
        interrupted()
    assert threads() == []
    with ahead(endless(), 1) as values:
        next(values)
    assert threads() == []


@pytest.mark.parametrize("device, expected", [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_the_thread_uses_the_gpu_of_its_process(device: str, expected: list, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def set_device(chosen: torch.device) -> None:
        assert threading.current_thread().name == "llmcls-batches"
        used.append(chosen)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    with ahead(range(3), 2, torch.device(device)) as values:
        assert list(values) == [0, 1, 2]
    assert used == expected


def test_only_cuda_is_worth_a_thread() -> None:
    assert depth_for(torch.device("cpu")) == 0
    assert depth_for(torch.device("mps")) == 0
    assert depth_for(torch.device("cuda", 1)) == DEPTH
