from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from llmcls.serving.handover import Handover


def handed_over(settle: Any, number: int = 1) -> tuple[list[Any], int]:
    """What the futures of an event loop hold after a thread settled theirs, and how often the loop was woken."""

    async def wait() -> tuple[list[Any], int]:
        loop, woken = asyncio.get_running_loop(), []
        handover = Handover(loop)
        real = loop.call_soon_threadsafe
        futures: list[Future[Any]] = [Future() for _ in range(number)]
        waiting = [handover.wrap(future) for future in futures]

        def counted(callback: Any, *arguments: Any) -> Any:
            if callback == handover._settle:
                woken.append(callback)
            return real(callback, *arguments)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        thread = threading.Thread(target=lambda: [settle(i, future) for i, future in enumerate(futures)])
        thread.start()
        # The loop is held up until all are ready.
        thread.join()
        return await asyncio.gather(*waiting, return_exceptions=True), len(woken)

    return asyncio.run(wait())


def test_results_that_are_ready_together_wake_the_loop_once() -> None:
    assert handed_over(lambda i, future: future.set_result(i), 5) == ([0, 1, 2, 3, 4], 1)


def test_errors_and_cancellations_arrive_too() -> None:
    (error,), _ = handed_over(lambda _, future: future.set_exception(ValueError("broken")))
    assert isinstance(error, ValueError)
    (cancelled,), _ = handed_over(lambda _, future: future.cancel())
    assert isinstance(cancelled, asyncio.CancelledError)


def test_cancelling_reaches_the_thread_and_a_late_result_is_dropped() -> None:
    async def cancel() -> tuple[bool, Any]:
        handover, future, running = Handover(asyncio.get_running_loop()), Future[int](), Future[int]()
        assert running.set_running_or_notify_cancel()
        waiting = [handover.wrap(future), handover.wrap(running)]
        for each in waiting:
            each.cancel()
        await asyncio.sleep(0)
        running.set_result(3)
        await asyncio.sleep(0)
        return future.cancelled(), waiting[1].cancelled()

    assert asyncio.run(cancel()) == (True, True)


def test_a_result_after_the_end_of_the_loop_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    async def wrap() -> Future[int]:
        future = Future[int]()
        Handover(asyncio.get_running_loop()).wrap(future)
        return future

    asyncio.run(wrap()).set_result(1)
    # An error of a callback is only logged.
    assert not caplog.records
