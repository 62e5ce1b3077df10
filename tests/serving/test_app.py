from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from llmcls.results.error_analysis import read_texts
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.app import make_app
from llmcls.serving.endpoint import Question
from llmcls.serving.guard import Limits
from llmcls.serving.loaded import load_runs
from llmcls.serving.metrics import Metrics
from llmcls.serving.service import Service
from tests.conftest import Experiment
from tests.helpers import fresh_accelerator, read_lines

LIMITS = Limits(max_texts=8, max_chars=1000, max_bytes=20_000, max_waiting=200)


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    """The service keeps the accelerator that it opened, so no test of this file opens another."""


@pytest.fixture(scope="module")
def service(trained_once: Experiment) -> Iterator[Service]:
    """A service with two runs over one base."""
    fresh_accelerator()
    runs = load_runs([open_run(RunFolder(path)) for path in trained_once.runs])
    made = Service({"run_0": runs[0], "run_1": runs[1]}, Metrics(), LIMITS.max_waiting)
    yield made
    made.close()


@pytest.fixture(scope="module")
def texts(trained_once: Experiment) -> list[str]:
    return read_texts(open_run(RunFolder(trained_once.runs[0])).recipe, "test").texts


def ask(service: Service, question: Callable[[httpx.AsyncClient], Awaitable[Any]], key: str | None = None) -> Any:
    """What a client gets that asks in an event loop of its own."""

    async def run() -> Any:
        transport = httpx.ASGITransport(make_app(service, LIMITS, key), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            return await question(client)

    return asyncio.run(run())


def classify(service: Service, key: str | None = None, **request: Any) -> httpx.Response:
    return ask(service, lambda client: client.post("/classify", **request), key)


def passes(service: Service, run: str) -> float:
    return service.metrics.registry.get_sample_value("llmcls_passes_total", {"run": run}) or 0


def test_many_clients_at_once_get_what_predict_wrote_in_few_passes(
    service: Service, texts: list[str], trained_once: Experiment
) -> None:
    stored = [read_lines(path / "predictions_test.jsonl") for path in trained_once.runs]
    clients = [(i % len(texts), i % 2) for i in range(64)]
    before = passes(service, "run_0") + passes(service, "run_1")

    async def together(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = [client.post("/classify", json={"texts": [texts[i]], "run": f"run_{run}"}) for i, run in clients]
        return await asyncio.gather(*asked)

    for (row, run), response in zip(clients, ask(service, together), strict=True):
        assert response.status_code == 200
        assert response.json()["run"] == f"run_{run}"
        (found,), expected = response.json()["results"], stored[run][row]
        assert found["labels"] == expected["labels"]
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    assert passes(service, "run_0") + passes(service, "run_1") - before <= 20


def test_a_request_has_its_texts_in_order_and_the_most_probable_labels_first(
    service: Service, texts: list[str], trained_once: Experiment
) -> None:
    stored = read_lines(trained_once.runs[0] / "predictions_test.jsonl")[:5]
    results = classify(service, json={"texts": texts[:5], "top_k": 3}).json()["results"]
    for found, expected in zip(results, stored, strict=True):
        highest = sorted(expected["probabilities"], key=lambda name: -expected["probabilities"][name])[:3]
        assert list(found["probabilities"]) == highest
        assert found["labels"] == expected["labels"]


NESTED = "[" * 5000 + "]" * 5000
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "too many texts": ({"json": {"texts": ["a"] * 9}}, 413, "has 9 texts; send at most 8"),
    "a long text": ({"json": {"texts": ["a", "b" * 1001]}}, 413, "text 1 has 1001 characters"),
    "many bytes": ({"content": b" " * 20_001}, 413, "has more than 20000 bytes"),
    "no text": ({"json": {"texts": []}}, 422, "texts: list should have at least 1 item"),
    "one text": ({"json": {"texts": "a"}}, 422, "texts: input should be a valid list"),
    "a number": ({"json": {"texts": ["a", 3]}}, 422, "texts.1: input should be a valid string"),
    "half a character": ({"content": b'{"texts": ["\\ud800"]}', "headers": {"content-type": "application/json"}},
                         422, "text 0: character 0 is half of a pair"),
    "a wrong key": ({"json": {"texts": ["a"], "k" * 500: 1}}, 422, "a field is none of texts, run, top_k"),
    "no labels": ({"json": {"texts": ["a"], "top_k": 0}}, 422, "top_k: input should be greater than"),
    "an unknown run": ({"json": {"texts": ["a"], "run": "../etc"}}, 404, "this server has run_0, run_1"),
    "no JSON": ({"content": b'{"texts": [', "headers": {"content-type": "application/json"}}, 400, "is not JSON"),
    "no UTF-8": ({"content": b'{"texts": ["\xff"]}', "headers": {"content-type": "application/json"}}, 400, "body"),
    "binary": ({"content": bytes(range(256))}, 422, "the body is no question"),
    "deep": ({"content": NESTED, "headers": {"content-type": "application/json"}}, 400, "body"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_gets_one_sentence(kind: str, service: Service) -> None:
    request, status, sentence = BAD[kind]
    response = classify(service, **request)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert sentence in response.json()["error"]
    assert len(response.json()["error"]) < 300


@pytest.mark.parametrize("request_", [{"texts": [1] * 1000}, {f"field {i}": 1 for i in range(1000)}])
def test_a_request_with_very_many_errors_is_refused_at_the_first(request_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        Question.model_validate(request_)
    assert refused.value.error_count() == 1


def test_a_wrong_path_and_a_wrong_method_get_a_sentence_too(service: Service) -> None:
    assert ask(service, lambda client: client.get("/nothing")).json() == {"error": "Not Found"}
    assert ask(service, lambda client: client.get("/classify")).json() == {"error": "Method Not Allowed"}


def test_characters_that_are_hard_to_read_are_classified(service: Service) -> None:
    hostile = [
        "",
        " \n",
        "\x00",
        "a\u202eb",
        "\U0001f600" * 200,
        "{{text}} {labels} <|endoftext|> </s>",
        "' OR 1=1; --",
    ]
    response = classify(service, json={"texts": hostile})
    assert response.status_code == 200
    assert len(response.json()["results"]) == len(hostile)


def test_with_a_key_only_health_and_documentation_are_open(service: Service) -> None:
    key = "0123456789abcdef"
    question = {"json": {"texts": ["a"]}}
    for given in ({}, {"authorization": f"Bearer {key}x"}, {"authorization": f"Basic {key}"}, {"authorization": "é"}):
        headers = {name: value.encode() for name, value in given.items()}
        response = classify(service, key, headers=headers, **question)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert "needs a key" in response.json()["error"]
        assert key not in response.text
    for scheme in ("Bearer", "bearer"):
        assert classify(service, key, headers={"authorization": f"{scheme} {key}"}, **question).status_code == 200
    statuses = {
        path: ask(service, lambda client, path=path: client.get(path), key).status_code
        for path in ("/health", "/docs", "/openapi.json", "/metrics")
    }
    assert statuses == {"/health": 200, "/docs": 200, "/openapi.json": 200, "/metrics": 401}


def test_the_documentation_names_the_interface(service: Service) -> None:
    described = ask(service, lambda client: client.get("/openapi.json"), "0123456789abcdef").json()
    operation = described["paths"]["/classify"]["post"]
    assert set(operation["responses"]) >= {"200", "401", "413", "422", "503"}
    assert operation["security"] == [{"HTTPBearer": []}]
    assert described["components"]["schemas"]["Question"]["properties"]["texts"]["type"] == "array"


def test_what_is_served_is_counted(service: Service, texts: list[str]) -> None:
    classify(service, json={"texts": texts[:3]})
    page = ask(service, lambda client: client.get("/metrics")).text
    assert 'llmcls_requests_total{status="200"}' in page
    assert 'llmcls_texts_total{run="run_0"}' in page
    assert "llmcls_waiting_texts 0.0" in page
    assert "process_resident_memory_bytes" in page


def test_a_failing_model_is_the_servers_fault_and_says_nothing_of_it(service: Service, monkeypatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret path /srv/model")

    monkeypatch.setattr(service.runs["run_0"], "probabilities", broken)
    response = classify(service, json={"texts": ["a"]})
    assert response.status_code == 500
    assert response.json() == {"error": "the server failed to classify this; its log says why"}
    monkeypatch.undo()
    assert classify(service, json={"texts": ["a"]}).status_code == 200


def test_texts_of_a_client_that_went_away_are_not_scored(service: Service, monkeypatch) -> None:
    """The client hangs up while its texts wait behind a pass."""
    import threading

    go_on, real, scored = threading.Event(), service.runs["run_0"].probabilities, []

    def slow(rows: list[Any]) -> Any:
        scored.append(len(rows))
        assert go_on.wait(30)
        return real(rows)

    monkeypatch.setattr(service.runs["run_0"], "probabilities", slow)
    body = json.dumps({"texts": ["a", "b"]}).encode()

    async def hang_up() -> None:
        app = make_app(service, LIMITS, None)
        first = asyncio.ensure_future(service.probabilities("run_0", ["first"]))
        while not scored:
            await asyncio.sleep(0.01)
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": body, "more_body": False}]
        scope = {
            "type": "http", "method": "POST", "path": "/classify", "raw_path": b"/classify", "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "root_path": "", "scheme": "http",
            "http_version": "1.1", "server": ("server", 80), "client": ("client", 1),
        }  # fmt: skip

        async def receive() -> Any:
            if len(messages) == 1:
                while service.batcher.waiting < 2:
                    await asyncio.sleep(0.01)
            return messages.pop()

        async def send(_: Any) -> None:
            pass

        await app(scope, receive, send)
        go_on.set()
        await first
        await service.probabilities("run_0", ["last"])

    asyncio.run(hang_up())
    assert scored == [1, 1]
