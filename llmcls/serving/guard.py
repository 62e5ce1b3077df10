"""What happens to every request before the application sees it: the key, the size and the time of its body.

This stands before the web framework, which would read a body of any size into memory before it asks for the key.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from llmcls.serving.metrics import Metrics

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# Paths that need no key: whether the server runs, and the documentation of its interface.
OPEN_PATHS = {"/health", "/docs", "/openapi.json"}


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes
    ----------
    max_texts : int
        Texts of a request.
    max_chars : int
        Characters of a text.
    max_bytes : int
        Bytes of the body of a request.
    max_waiting : int
        Texts of all requests that may wait for a pass.
    held_bytes : int
        Bytes of the bodies of all requests at a time.
    body_seconds : float
        In which a body has to arrive.
    """

    max_texts: int = 256
    max_chars: int = 50_000
    max_bytes: int = 8 * 2**20
    max_waiting: int = 20_000
    held_bytes: int = 256 * 2**20
    body_seconds: float = 30.0


class RequestError(Exception):
    """A request that cannot be answered: the HTTP status, and one sentence that says why."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """An ASGI application around another one, which gets only requests with the key and a body within the limits.

    Parameters
    ----------
    application : ASGI application
    limits : Limits
    key : str, optional
        That requests must have, as ``Authorization: Bearer KEY``.
    metrics : Metrics
        Counts every answer.
    """

    def __init__(self, application: Application, limits: Limits, key: str | None, metrics: Metrics) -> None:
        self.application, self.limits, self.metrics = application, limits, metrics
        self._key = None if key is None else key.encode()
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        start, body = time.perf_counter(), bytearray()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.count_request(message["status"], time.perf_counter() - start)
            await send(message)

        try:
            self._require_key(scope)
            if await self._read(receive, body):
                await self.application(scope, replay(bytes(body), receive), counted)
        except RequestError as error:
            await _refuse(error, counted)
        finally:
            self._held -= len(body)

    def _require_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        # In constant time, so that answers do not tell how much of a guess is right.
        if not hmac.compare_digest(given, self._key) or scheme.lower() != b"bearer":
            raise RequestError(401, "this server needs a key; send the header Authorization: Bearer KEY")

    async def _read(self, receive: Receive, body: bytearray) -> bool:
        """Read the body of a request; false if the client went away before it was complete."""
        limit, size, problem = self.limits.max_bytes, 0, None
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return False
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        problem = RequestError(413, f"the request has more than {limit} bytes; send fewer texts")
                    elif self._held + len(chunk) > self.limits.held_bytes:
                        problem = RequestError(503, "too many requests are being read; try again later")
                    if problem is None:
                        body += chunk
                        self._held += len(chunk)
                    # The rest is read and dropped: a client that still sends would not see the answer.
                    elif size > 8 * limit:
                        raise problem
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise RequestError(408, f"the request took more than {self.limits.body_seconds:.0f} s to arrive") from None
        if problem is not None:
            raise problem
        return True


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body that was read already, and then what comes after it."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed


async def _refuse(error: RequestError, send: Send) -> None:
    body = json.dumps({"error": error.sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
