from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest

from llmcls.serving import protocol
from llmcls.serving.guard import Guard, Limits, Receive, Send
from llmcls.serving.metrics import Metrics
from llmcls.serving.server import Server, open_socket
from tests.helpers import until

BODY = 300_000


class NoService:
    """What a `Server` needs of a service to stop."""

    def stop(self, seconds: float) -> None:
        pass


async def length_of_body(_: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """An application that answers with the number of bytes that it got."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"%6d" % len(body)})


@pytest.fixture
def port() -> Iterator[int]:
    opened = open_socket("127.0.0.1", 0)
    server = Server(Guard(length_of_body, Limits(), None, Metrics()), NoService(), 1)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, args=([opened],))
    thread.start()
    until(lambda: server.started)
    yield opened.getsockname()[1]
    server.should_exit = True
    thread.join(30)


def answer(port: int, *parts: bytes) -> bytes:
    """All that comes back on a connection that sends these parts."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        found = b""
        try:
            for part in parts:
                connection.sendall(part)
            while chunk := connection.recv(65536):
                found += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
        return found


def works(port: int) -> bool:
    """Whether requests on one connection, of which some have large bodies, are answered one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for size in (BODY, 0, BODY):
        connection.request("POST", "/", b"x" * size, {"x-long": "y" * (protocol.HEAD_BYTES // 2)})
        if int(connection.getresponse().read()) != size:
            return False
    connection.close()
    return True


@pytest.mark.parametrize(
    "request_parts",
    [
        [b"GET / HTTP/1.1\r\nx: ", *[b"y" * 40_000] * 3],
        [b"GET /", *[b"y" * 40_000] * 3],
        [b"GET / HTTP/1.1\r\n", *[b"x: y\r\n" * 7000] * 3],
        [b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}GET / HTTP/1.1\r\nx: ", *[b"y" * 40_000] * 12],
    ],
    ids=["a header", "a path", "many headers", "the second request"],
)
def test_a_head_that_is_too_long_is_not_read_to_its_end(
    request_parts: list[bytes], port: int, caplog: pytest.LogCaptureFixture
) -> None:
    # A client that still sends may not see the answer.
    assert answer(port, *request_parts).count(b"HTTP/1.1 200") <= (b"POST" in request_parts[0])
    assert [record.message for record in caplog.records if record.name == protocol.__name__] == [
        "a request has more than 65536 bytes before its body"
    ]
    assert works(port)


def test_a_long_head_in_parts_is_answered_in_words(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * protocol.HEAD_BYTES)
        assert b"path and headers of a request must have at most 65536 bytes" in connection.recv(65536)


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_gets_400(noise: bytes, port: int) -> None:
    assert answer(port, noise).startswith(b"HTTP/1.1 400 Bad Request")
    assert works(port)


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nx: "])
def test_a_head_that_does_not_come_is_not_waited_for(head: bytes, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    assert answer(port, head) == b""
    assert works(port)


def test_a_body_may_come_later_than_a_head(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    body = json.dumps({"texts": ["x"]}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body))
        threading.Event().wait(0.5)
        connection.sendall(body)
        assert b"HTTP/1.1 200 OK" in connection.recv(65536)
