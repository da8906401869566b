"""The routes of a server: who may ask what, how much at once, and what is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from akkordeon.core.errors import DataError
from akkordeon.core.payload import samples
from akkordeon.session.http.admission import Admission, Endpoint, come_again
from akkordeon.session.http.answers import json_answer, sentence_answer
from akkordeon.session.http.json_bodies import json_object
from akkordeon.session.serving.batcher import Batcher
from akkordeon.session.serving.bodies import NUMPY, Inputs, as_json_value, numpy_bytes
from akkordeon.session.serving.learning import Learning, key_of
from akkordeon.session.serving.limits import Limits
from akkordeon.session.serving.metrics import RequestCounts, number
from akkordeon.session.serving.weights import Refresher

__all__ = ["Service"]

VERSION = "Akkordeon-Version"
"""The header of answers that have no other place for it."""


class Service:
    """Answers requests. All of it runs in the thread of one event loop.

    Args:
        weights: the latest.
        batcher: computes with them.
        inputs: makes inputs of bodies.
        limits: of requests.
        token: that they must bear; None lets everybody in.
        learning: takes examples to learn from; None where nobody does.

    Attributes:
        app: what answers, for a server of ASGI.
    """

    def __init__(
        self,
        weights: Refresher,
        batcher: Batcher,
        inputs: Inputs,
        limits: Limits,
        token: str | None,
        learning: Learning | None = None,
    ) -> None:
        self._weights = weights
        self._batcher = batcher
        self._inputs = inputs
        self._admission = Admission(token, limits.queue_max, limits.body_bytes_max)
        self._learning = learning
        self._counts = RequestCounts()
        answers = {
            "/predict": ("POST", self._admission.admitted(self._predict)),
            "/healthz": ("GET", _alive),
            "/readyz": ("GET", self._ready),
            "/metrics": ("GET", self._metrics),
        }
        if learning is not None:
            answers["/learn"] = "POST", self._admission.admitted(partial(self._learn, learning))
        routes = [
            Route(path, self._counted(path, endpoint), methods=[method])
            for path, (method, endpoint) in answers.items()
        ]
        self._paths = ", ".join(f"{method} {path}" for path, (method, _) in answers.items())
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: self._elsewhere})

    # ── what is asked ────────────────────────────────────────────────────────────────────────────────

    async def _predict(self, request: Request, body: bytes) -> Response:
        in_numpy = request.headers.get("content-type", "").partition(";")[0].strip().lower() == NUMPY
        x = self._inputs.from_numpy(body) if in_numpy else self._inputs.from_json(*_fields(body, "inputs"))
        answer = await asyncio.wrap_future(self._batcher.submit(x))
        if in_numpy:
            headers = {VERSION: str(answer.version)}
            return Response(numpy_bytes(answer.outputs), headers=headers, media_type=NUMPY)
        return json_answer({"outputs": as_json_value(answer.outputs), "version": answer.version})

    async def _learn(self, learning: Learning, request: Request, body: bytes) -> Response:
        inputs, targets, key = _fields(body, "inputs", "targets", key=None)
        x, key = self._inputs.from_json(inputs), key_of(key)
        y = learning.targets(targets, samples(x))
        why_not = learning.why_not
        if why_not is None:
            await asyncio.wrap_future(self._batcher.submit(x, partial(learning.check, x, y)))
            why_not = learning.take(x, y, key)
        if why_not is not None:
            raise come_again(why_not)
        return json_answer({"waiting": learning.waiting}, 202)

    async def _ready(self, request: Request) -> Response:
        if self._weights.failure is not None:
            return sentence_answer(503, f"there are no newer weights: {self._weights.failure}")
        return json_answer({"version": self._weights.latest.version, "age_s": self._weights.age_s})

    async def _metrics(self, request: Request) -> Response:
        self._admission.check_token(request)
        trained = await run_in_threadpool(self._weights.batches_trained)
        return PlainTextResponse("\n".join([*self._lines(trained), ""]))

    def _lines(self, trained: int | None) -> Iterator[str]:
        yield from self._counts.lines()
        yield from number(
            "requests_under_way", "Requests that are read, wait or are computed.", self._admission.under_way
        )
        yield from number("batches_total", "Batches computed.", self._batcher.batches, kind="counter")
        yield from number("rows_total", "Rows in them.", self._batcher.rows, kind="counter")
        yield from number("weights_version", "Updates behind the weights.", self._weights.latest.version)
        yield from number("weights_age_seconds", "Since they were the network's.", self._weights.age_s)
        if self._learning is not None:
            waiting = self._learning.waiting
            yield from number("examples_waiting", "Examples that wait to be learned from.", waiting)
        if trained is not None:
            yield from number("trained_batches_total", "Batches trained.", trained, kind="counter")

    # ── what is answered ─────────────────────────────────────────────────────────────────────────────

    def _counted(self, path: str, endpoint: Endpoint) -> Endpoint:
        """Answers with a sentence where there is no other answer, and counts."""

        async def answer(request: Request) -> Response:
            began_s = time.monotonic()
            try:
                response = await endpoint(request)
            except DataError as error:
                response = sentence_answer(422, str(error))
            except HTTPException as error:
                response = sentence_answer(error.status_code, error.detail, error.headers)
            self._counts.add(path, response.status_code, time.monotonic() - began_s)
            return response

        return answer

    async def _elsewhere(self, request: Request, error: Exception) -> Response:
        """What is no route, or asked otherwise than it may be."""
        assert isinstance(error, HTTPException), "those are told of here"
        self._counts.add("other", error.status_code, 0.0)
        there = f"there are {self._paths}"
        return sentence_answer(
            error.status_code, f"no {request.method} {request.url.path}; {there}", error.headers
        )


async def _alive(request: Request) -> Response:
    return PlainTextResponse("ok\n")


def _fields(body: bytes, *needed: str, **optional: Any) -> list[Any]:
    """What a body has under these names, in their order.

    Raises:
        DataError: it is no JSON object, or has none of a name that is needed.
    """
    found = json_object(body)
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(f"the body has no {' and no '.join(missing)}")
    return [found[name] for name in needed] + [found.get(name, other) for name, other in optional.items()]
