"""What a server answers to a question.

The web framework takes longer over a request than the model over a short text. So a good question is answered here, and
every other request goes to the framework, which says what is wrong with it.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, FailFast, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, to_json

from llmcls.common.user_error import UserError
from llmcls.serving.batcher import Refused
from llmcls.serving.guard import Application, Limits, Receive, RequestError, Scope, Send, replay
from llmcls.serving.service import Service

PATH = "/classify"
# Up to so many probabilities, results are made up in the event loop; more would hold up other requests.
QUICK = 2000


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


class Endpoint:
    """An ASGI application that answers good questions, and hands every other request to another one.

    Parameters
    ----------
    service : Service
    limits : Limits
    others : ASGI application
        For requests that are no question, or a wrong one. It reads their bodies again.
    """

    def __init__(self, service: Service, limits: Limits, others: Application) -> None:
        self.service, self.limits, self.others = service, limits, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whose body comes in one message, as `llmcls.serving.guard.Guard` gives it."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST" or not _is_json(scope):
            await self.others(scope, receive, send)
            return
        body = (await receive())["body"]
        try:
            question = Question.model_validate_json(body)
        except ValidationError:
            await self.others(scope, replay(body, receive), send)
            return
        try:
            response = await self.answer(question, receive)
        except (RequestError, UserError, Refused) as error:
            response = refusal(error)
        except Exception as error:
            await refusal(error)(scope, receive, send)
            # For the log of the web server.
            raise
        await response(scope, receive, send)

    async def answer(self, question: Question, receive: Receive) -> Response:
        """Classify the texts of a question, unless the client goes away.

        Raises
        ------
        RequestError
            If there is no such run, or a text is too long or one too many.
        UserError
            If a text is none.
        Refused
            If too many texts wait, or the server stops.
        """
        service, name = self.service, self._known_run(question.run)
        self._require_within(question.texts)
        async with _WhileConnected(receive) as connection:
            probabilities = await service.probabilities(name, question.texts)
        if connection.gone:
            return Response(status_code=499)
        if probabilities.size <= QUICK:
            results = service.results(name, probabilities, question.top_k)
        else:
            results = await asyncio.to_thread(service.results, name, probabilities, question.top_k)
        return Response(to_json({"run": name, "results": results}), media_type="application/json")

    def _known_run(self, name: str | None) -> str:
        """The run that a request asks for."""
        runs = self.service.runs
        if name is None:
            return next(iter(runs))
        if name not in runs:
            raise RequestError(404, f"there is no run of that name; this server has {', '.join(runs)}")
        return name

    def _require_within(self, texts: list[str]) -> None:
        """Refuse too many or too long texts."""
        if len(texts) > self.limits.max_texts:
            raise RequestError(413, f"the request has {len(texts)} texts; send at most {self.limits.max_texts} at once")
        for i, text in enumerate(texts):
            if len(text) > self.limits.max_chars:
                raise RequestError(413, f"text {i} has {len(text)} characters; the limit is {self.limits.max_chars}")


def refusal(error: Exception) -> JSONResponse:
    """What a client is told about an error."""
    if isinstance(error, RequestError):
        return JSONResponse({"error": error.sentence}, error.status)
    if isinstance(error, UserError):
        return JSONResponse({"error": str(error)}, 422)
    if isinstance(error, Refused):
        return JSONResponse({"error": str(error)}, 503, headers={"Retry-After": "1"})
    return JSONResponse({"error": "the server failed to classify this; its log says why"}, 500)


def _is_json(scope: Scope) -> bool:
    """Whether a request says that it is JSON: no other page can make a browser send that without asking."""
    kind: bytes = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return kind.partition(b";")[0].strip().lower() == b"application/json"


class _WhileConnected:
    """A context whose work is cancelled if the client goes away; ``gone`` says whether it did."""

    def __init__(self, receive: Receive) -> None:
        self.receive, self.gone = receive, False

    async def __aenter__(self) -> _WhileConnected:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watching = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._watching.cancel()
        if not self.gone:
            return False
        self._task.uncancel()
        return kind is asyncio.CancelledError

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()
