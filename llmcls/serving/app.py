"""The HTTP interface of a server: ``/classify``, ``/health``, ``/metrics``, and its documentation at ``/docs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from llmcls import __version__
from llmcls.common.user_error import UserError
from llmcls.serving.batcher import Refused
from llmcls.serving.endpoint import PATH, Endpoint, Question, refusal
from llmcls.serving.guard import Guard, Limits, RequestError
from llmcls.serving.service import Service


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

    endpoint = Endpoint(service, limits, app)

    @app.post(PATH, response_model=Answer, responses=REFUSALS, dependencies=secured)
    async def classify(question: Question, request: Request) -> Response:
        """Classify texts. Thresholds and calibration of the run are applied."""
        return await endpoint.answer(question, request.receive)

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

    for kind in (RequestError, UserError, Refused, Exception):
        app.add_exception_handler(kind, refused)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        return JSONResponse({"error": _sentence(found)}, 400 if found[0]["type"] == "json_invalid" else 422)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    return Guard(endpoint, limits, key, service.metrics)


async def refused(_: Request, error: Exception) -> JSONResponse:
    """`refusal`, as the framework calls it."""
    return refusal(error)


def _sentence(errors: Sequence[Any]) -> str:
    """The first problem of a request in words, without what the client sent."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be parsed')}"
    place = ".".join(str(part) for part in first["loc"] if part != "body")[:80]
    message = f"{first['msg'][:1].lower()}{first['msg'][1:160]}"
    return f"{place}: {message}" if place else f"the body is no question: {message}"
