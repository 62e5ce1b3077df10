from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from llmcls.serving.guard import Guard, Limits, Receive, Send
from llmcls.serving.metrics import Metrics

LIMITS = Limits(max_bytes=10, held_bytes=15, body_seconds=0.05)


class Server:
    """An application that notes the body that reaches it, and waits for `go_on` before it answers."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.bodies: list[bytes] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.metrics = Metrics()
        self.guard = Guard(self._answer, limits, None, self.metrics)

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask(self, *chunks: bytes, end: bool = True) -> tuple[int | None, str]:
        """Status and error sentence for a body that arrives in chunks; without ``end``, its last one never comes."""
        sent: list[Any] = []
        left = list(chunks)

        async def receive() -> dict[str, Any]:
            if not left:
                await asyncio.sleep(60)
            chunk = left.pop(0)
            if chunk == b"gone":
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": bool(left) or not end}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.guard({"type": "http", "path": "/classify", "headers": []}, receive, send)
        if not sent:
            return None, ""
        return sent[0]["status"], json.loads(sent[1]["body"]).get("error", "")


def test_a_body_reaches_the_application_whole() -> None:
    async def check() -> None:
        server = Server()
        assert (await server.ask(b"12345", b"", b"67890"))[0] == 200
        assert server.bodies == [b"1234567890"]

    asyncio.run(check())


@pytest.mark.parametrize(
    ("chunks", "end", "status", "sentence"),
    [
        ((b"12345", b"678901"), True, 413, "has more than 10 bytes"),
        ((b"12345", *[b"1234567890"] * 9, b"never read"), False, 413, "has more than 10 bytes"),
        ((b"1234",), False, 408, "took more than 0 s to arrive"),
        ((b"1234", b"gone"), False, None, ""),
    ],
    ids=["large", "endless", "slow", "gone"],
)
def test_what_arrives_wrongly_does_not_reach_it(
    chunks: tuple[bytes, ...], end: bool, status: int | None, sentence: str
) -> None:
    async def check() -> None:
        server = Server()
        found = await server.ask(*chunks, end=end)
        assert found[0] == status
        assert sentence in found[1]
        assert server.bodies == []
        assert (await server.ask(b"1234567890"))[0] == 200, "what was held is free again"

    asyncio.run(check())


def test_the_bodies_of_all_requests_together_are_limited() -> None:
    async def check() -> None:
        server = Server()
        server.go_on.clear()
        first = asyncio.ensure_future(server.ask(b"1234567890"))
        await asyncio.sleep(0)
        status, sentence = await server.ask(b"123456")
        assert (status, "too many requests are being read" in sentence) == (503, True)
        second = asyncio.ensure_future(server.ask(b"12345"))
        server.go_on.set()
        assert [(await first)[0], (await second)[0]] == [200, 200]

    asyncio.run(check())


def test_refused_requests_are_counted_too() -> None:
    server = Server()
    asyncio.run(server.ask(b"12345678901"))
    assert server.metrics.registry.get_sample_value("llmcls_requests_total", {"status": "413"}) == 1
