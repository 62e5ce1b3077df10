from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from llmcls.common.user_error import UserError
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.app import make_app
from llmcls.serving.guard import Limits
from llmcls.serving.loaded import load_runs
from llmcls.serving.metrics import Metrics
from llmcls.serving.server import Server, open_socket
from llmcls.serving.service import Service
from tests.conftest import Experiment
from tests.helpers import until

CLIENTS = 12


@pytest.fixture
def _harmless_signal() -> Iterator[None]:
    """A signal that arrives when no server runs does not end the tests."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_harmless_signal")
@pytest.mark.parametrize("drain_seconds", [60, 0])
def test_killed_under_load_it_answers_or_refuses_every_request(drain_seconds: float, trained_once: Experiment) -> None:
    run = load_runs([open_run(RunFolder(trained_once.runs[0]))])[0]
    go_on, passes, real = threading.Event(), [], run.probabilities

    def slow(rows: list[Any]) -> Any:
        passes.append(len(rows))
        assert go_on.wait(60)
        return real(rows)

    service, opened = Service({"run_0": run}, Metrics(), 1000, 20), open_socket("127.0.0.1", 0)
    run.probabilities = slow  # type: ignore[method-assign]
    server = Server(make_app(service, Limits(), None), service, drain_seconds)
    url = f"http://127.0.0.1:{opened.getsockname()[1]}"
    outcomes: list[Any] = []

    def client(pool: ThreadPoolExecutor) -> None:
        until(lambda: server.started)
        asked = [
            pool.submit(httpx.post, f"{url}/classify", json={"texts": ["a novel"] * 2}, timeout=60)
            for _ in range(CLIENTS)
        ]
        until(lambda: passes and service.batcher.waiting == 2 * CLIENTS - sum(passes))
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: server.should_exit)
        go_on.set()
        outcomes.extend((answer.result().status_code, answer.result().json()) for answer in asked)

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        talking = pool.submit(client, pool)
        server.run([opened])
        talking.result(60)
    service.close()
    assert len(outcomes) == CLIENTS
    refused = [body for status, body in outcomes if status == 503]
    assert all("results" in body for status, body in outcomes if status == 200)
    assert {status for status, _ in outcomes} <= {200, 503}
    assert all("stopp" in body["error"] for body in refused)
    assert (len(refused) == 0) == (drain_seconds == 60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve on 127.0.0.1 port {port}: .*in use.*; choose another"):
            open_socket("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("no such host", 0), ("127.0.0.1", 70_000)])
def test_an_impossible_address_is_refused(host: str, port: int) -> None:
    with pytest.raises(UserError, match="cannot serve on"):
        open_socket(host, port)


def test_an_answer_is_sent_at_once_also_in_two_parts() -> None:
    # Without this option, the second part waits until the client has acknowledged the first, some 40 ms.
    async def option() -> int:
        seen: list[int] = []
        listening = open_socket("127.0.0.1", 0)

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            seen.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(connected, sock=listening)
        reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        await reader.read()
        writer.close()
        server.close()
        return seen[0]

    assert asyncio.run(option()) != 0
