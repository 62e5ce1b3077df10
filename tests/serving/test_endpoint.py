from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.serving.batcher import Refused
from llmcls.serving.endpoint import Endpoint
from llmcls.serving.guard import Limits

GOOD = {"texts": ["a novel"]}


class Stub:
    """A service that knows one run and gives every text the same probabilities, or raises an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runs, self.error, self.asked = {"run_0": None}, error, []

    async def probabilities(self, name: str, texts: list[str]) -> np.ndarray:
        self.asked.append((name, texts))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return np.full((len(texts), 2), 0.25, dtype=np.float32)

    def results(self, name: str, probabilities: np.ndarray, top_k: int | None) -> list[Any]:
        return [{"labels": [], "probabilities": {"é": float(p)}} for p in probabilities[:, 0]]


def asked(
    service: Stub, body: bytes, path: str = "/classify", method: str = "POST", kind: bytes = b"application/json"
) -> tuple[int | None, Any, list[bytes]]:
    """Status and body of an answer, and the bodies that the other application got."""
    sent: list[Any] = []
    others: list[bytes] = []

    async def other(scope: Any, receive: Any, send: Any) -> None:
        others.append((await receive())["body"])

    async def ask() -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "method": method, "headers": [(b"content-type", kind)]}
        await Endpoint(service, Limits(max_texts=2, max_chars=10), other)(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(ask())
    if not sent:
        return None, None, others
    return sent[0]["status"], json.loads(sent[1]["body"]), others


def test_a_good_question_is_answered_without_the_framework() -> None:
    service = Stub()
    for kind in (b"application/json", b"Application/JSON; charset=utf-8"):
        status, answer, others = asked(service, json.dumps({**GOOD, "run": "run_0", "top_k": 1}).encode(), kind=kind)
        assert (status, others) == (200, [])
        assert answer == {"run": "run_0", "results": [{"labels": [], "probabilities": {"é": 0.25}}]}
    assert service.asked == [("run_0", ["a novel"])] * 2


@pytest.mark.parametrize(
    "request_",
    [
        {"body": b'{"texts": ['},
        {"body": b'{"texts": [1]}'},
        {"body": b'{"texts": ["a"], "key": 1}'},
        {"body": b'{"texts": ["\\ud800"]}'},
        {"body": json.dumps(GOOD).encode(), "path": "/other"},
        {"body": json.dumps(GOOD).encode(), "method": "PUT"},
        # A form on another page can send it without the browser asking the server first.
        {"body": json.dumps(GOOD).encode(), "kind": b"text/plain"},
    ],
)
def test_every_other_request_goes_to_the_framework_with_its_body(request_: dict[str, Any]) -> None:
    service = Stub()
    assert asked(service, **request_) == (None, None, [request_["body"]])
    assert service.asked == []


@pytest.mark.parametrize(
    "question, status, sentence",
    [
        ({"texts": ["a"], "run": "other"}, 404, "this server has run_0"),
        ({"texts": ["a"] * 3}, 413, "has 3 texts; send at most 2"),
        ({"texts": ["a", "b" * 11]}, 413, "text 1 has 11 characters"),
    ],
)
def test_a_question_beyond_the_limits_gets_a_sentence(question: Any, status: int, sentence: str) -> None:
    service = Stub()
    found, answer, others = asked(service, json.dumps(question).encode())
    assert (found, others, service.asked) == (status, [], [])
    assert sentence in answer["error"]


@pytest.mark.parametrize("error, status", [(UserError("text 0 is half a pair"), 422), (Refused("too many wait"), 503)])
def test_what_the_service_refuses_gets_its_sentence(error: Exception, status: int) -> None:
    assert asked(Stub(error), json.dumps(GOOD).encode()) == (status, {"error": str(error)}, [])


def test_an_error_of_the_server_is_logged_and_not_told() -> None:
    service, sent = Stub(RuntimeError("secret path")), []

    async def ask() -> None:
        messages = [{"body": json.dumps(GOOD).encode(), "type": "http.request"}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "path": "/classify", "method": "POST", "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        await Endpoint(service, Limits(), SimpleNamespace())(scope, receive, send)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="secret path"):
        asyncio.run(ask())
    assert sent[0]["status"] == 500
    assert b"secret" not in sent[1]["body"]
