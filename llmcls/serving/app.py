"""The HTTP interface of a server: ``/classify``, ``/health``, ``/metrics``, and its documentation at ``/docs``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, FailFast, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from llmcls import __version__
from llmcls.common.user_error import UserError
from llmcls.serving.batcher import Refused
from llmcls.serving.guard import Guard, Limits, RequestError
from llmcls.serving.service import Service


class Question(BaseModel):
    """Texts to classify."""

    # Checked up to the first error: a request can have a million.
    texts: Annotated[list[str], FailFast()] = Field(
        min_length=1, description="The texts.", examples=[["A novel about a garden."]]
    )
    run: str | None = Field(None, description="The run that answers, if the server has several. Default: the first.")
    top_k: int | None = Field(None, ge=1, description="How many probabilities to return, the highest first.")

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, value: Any) -> Any:
        unknown = isinstance(value, dict) and not set(value) <= set(cls.model_fields)
        if unknown:
            raise PydanticCustomError("unknown_field", f"a field is none of {', '.join(cls.model_fields)}")
        return value


class Result(BaseModel):
    """What was found for a text."""

    labels: list[str] = Field(description="The labels that the text gets, at the thresholds of the run.")
    probabilities: dict[str, float] = Field(description="Calibrated probabilities by label.")


class Answer(BaseModel):
    """The results, in the order of the texts."""

    run: str
    results: list[Result]


class Refusal(BaseModel):
    """Why a request is not answered."""

    error: str = Field(description="One sentence.")


# Up to so many probabilities, results are made up in the event loop; more would hold up other requests.
QUICK = 2000
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body is no JSON."},
    401: {"model": Refusal, "description": "The key is missing or wrong."},
    404: {"model": Refusal, "description": "There is no such run."},
    408: {"model": Refusal, "description": "The request arrived too slowly."},
    413: {"model": Refusal, "description": "The request has too many bytes, texts or characters."},
    422: {"model": Refusal, "description": "The request has other fields or types than it should."},
    503: {"model": Refusal, "description": "Too many texts wait, or the server stops."},
}


def make_app(service: Service, limits: Limits, key: str | None) -> Guard:
    """The application that a web server runs.

    Parameters
    ----------
    service : Service
    limits : Limits
    key : str, optional
        Without it, requests need none.

    Returns
    -------
    Guard
        An ASGI application.
    """
    app = FastAPI(
        title="llmcls", version=__version__, description="Text classification with trained runs.", redoc_url=None
    )
    # Only for the documentation: `Guard` has checked the key before.
    secured = [Depends(HTTPBearer(auto_error=False, description="The key of this server."))] if key else []

    @app.post("/classify", response_model=Answer, responses=REFUSALS, dependencies=secured)
    async def classify(question: Question, request: Request) -> Response:
        """Classify texts. Thresholds and calibration of the run are applied."""
        name = _known_run(question.run, service)
        _require_within(question.texts, limits)
        probabilities = await _unless_gone(service.probabilities(name, question.texts), request)
        if probabilities is None:
            return Response(status_code=499)
        if probabilities.size <= QUICK:
            results = service.results(name, probabilities, question.top_k)
        else:
            results = await asyncio.to_thread(service.results, name, probabilities, question.top_k)
        return JSONResponse({"run": name, "results": results})

    @app.get("/health", responses={503: {"description": "The server stops."}})
    async def health() -> JSONResponse:
        """Whether the server takes requests, and the names of its runs."""
        stopping = service.batcher.stopping
        found = {"status": "stopping" if stopping else "ready", "runs": list(service.runs)}
        return JSONResponse(found, 503 if stopping else 200)

    @app.get("/metrics", dependencies=secured)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(RequestError)
    async def refused_request(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": error.sentence}, error.status)

    @app.exception_handler(UserError)
    async def unusable(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503, headers={"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        return JSONResponse({"error": _sentence(found)}, 400 if found[0]["type"] == "json_invalid" else 422)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server failed to classify this; its log says why"}, 500)

    return Guard(app, limits, key, service.metrics)


def _known_run(name: str | None, service: Service) -> str:
    """The run that a request asks for."""
    if name is None:
        return next(iter(service.runs))
    if name not in service.runs:
        raise RequestError(404, f"there is no run of that name; this server has {', '.join(service.runs)}")
    return name


def _require_within(texts: list[str], limits: Limits) -> None:
    """Refuse too many or too long texts."""
    if len(texts) > limits.max_texts:
        raise RequestError(413, f"the request has {len(texts)} texts; send at most {limits.max_texts} at once")
    for i, text in enumerate(texts):
        if len(text) > limits.max_chars:
            raise RequestError(413, f"text {i} has {len(text)} characters; the limit is {limits.max_chars}")


async def _unless_gone(answer: Any, request: Request) -> np.ndarray | None:
    """The result of a coroutine; None if the client goes away before, and then the work is cancelled."""
    working = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            # Until then, the cancellation has not reached the texts that wait.
            await asyncio.wait({working})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _sentence(errors: Sequence[Any]) -> str:
    """The first problem of a request in words, without what the client sent."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be parsed')}"
    place = ".".join(str(part) for part in first["loc"] if part != "body")[:80]
    message = f"{first['msg'][:1].lower()}{first['msg'][1:160]}"
    return f"{place}: {message}" if place else f"the body is no question: {message}"
