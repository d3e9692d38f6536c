"""Around every request: figures for Prometheus, a bound on its size, and what it is refused with."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Iterator, Sequence
from http import HTTPMethod
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

from hyperflax.errors import CheckpointError
from hyperflax.serving.bounds import Closing, Failed, Full, Overloaded
from hyperflax.serving.service import Answer, Service
from hyperflax.serving.store import NotSaved, UnknownAdapter

RETRY_SECONDS = 1

log = logging.getLogger("hyperflax.serving")


class Figures:
    """What Prometheus reads."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "hyperflax"}
        self.requests = Counter("requests", "requests answered", ["method", "route", "status"], **made)
        self.seconds = Histogram("request_seconds", "time until the answer begins", ["route"], **made)
        self.predictions = Counter("predictions", "inputs answered", **made)
        for name, told, read in (
            ("waiting_inputs", "inputs that wait or are being decoded", lambda: service.waiting),
            ("waiting_adapters", "adapters that wait or are being made", lambda: service.maker.adapting),
            ("hosted_adapters", "adapters in host memory", lambda: len(service.engine.pool)),
            ("kept_adapters", "adapters on disk", lambda: service.maker.kept),
            ("ready", "1 when everything is compiled", lambda: float(service.ready)),
        ):
            Gauge(name, told, **made).set_function(read)
        self.registry.register(_Adapters(service))

    def count(self, answers: Sequence[Answer]) -> None:
        """Counts inputs that are answered."""
        self.predictions.inc(sum(answer.done for answer in answers))

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)


class _Adapters:
    """A counter that the service keeps itself, where it saves them."""

    def __init__(self, service: Service):
        self.service = service

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily("hyperflax_adapters_made", "adapters made", self.service.maker.made)


class Measure:
    """ASGI middleware: counts requests and takes their time, by route: of paths there are any number.

    As many are the methods that a caller may make up; those that HTTP does not have are counted together.
    """

    def __init__(self, app: Any, figures: Figures):
        self.app, self.figures = app, figures

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.monotonic(), 500

        async def begin(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.figures.seconds.labels(route()).observe(time.monotonic() - began)
            await send(message)

        def route() -> str:
            return getattr(scope.get("route"), "path", "other")

        try:
            await self.app(scope, receive, begin)
        finally:
            method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
            self.figures.requests.labels(method, route(), status).inc()


class BodyLimit:
    """ASGI middleware: a body above the limit is refused with 413, however its length is told; a slow one with 408."""

    def __init__(self, app: Any, limit: int, seconds: float = 60.0):
        self.app, self.limit, self.seconds = app, limit, seconds
        self.told = f"expected a body of at most {limit} bytes"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limit:
            return await JSONResponse({"detail": self.told}, 413)(scope, receive, send)
        size, whole, end = 0, False, asyncio.get_running_loop().time() + self.seconds

        async def counted() -> Any:
            nonlocal size, whole
            if whole:  # who asks now waits for the caller to hang up
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"expected the whole body within {self.seconds:g} s") from None
            whole = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.limit:
                raise HTTPException(413, self.told)
            return message

        return await self.app(scope, counted, send)


class Token:
    """ASGI middleware: who does not show the token gets 401, before anything of what he sends is read."""

    open = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})

    def __init__(self, app: Any, token: str | None):
        self.app, self.expected = app, None if token is None else token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self.expected is None or scope["path"] in self.open:
            return await self.app(scope, receive, send)
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        # A scheme's letters may be large or small (RFC 9110, section 11.1), and more than one space may follow.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.lstrip(b" "), self.expected):
            told, header = "expected the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            return await JSONResponse({"detail": told}, 401, header)(scope, receive, send)
        return await self.app(scope, receive, send)


class CutOff:
    """ASGI middleware: a request that is cancelled, because the service ends, is answered with 503 while it can be."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def begin(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, begin)
        except asyncio.CancelledError:
            if scope["type"] != "http" or begun:
                raise
            response = await refusal(Request(scope), Closing())
            await response(scope, receive, send)


async def refusal(_: Request, error: Exception) -> JSONResponse:
    """An error on purpose, as a status and one line."""
    if isinstance(error, Overloaded | Closing):
        status = 429 if isinstance(error, Overloaded) else 503
        # Another service may take the place of one that ends; one that has failed stays as it is.
        headers = {} if isinstance(error, Failed) else {"Retry-After": str(RETRY_SECONDS)}
        return JSONResponse({"detail": str(error)}, status, headers)
    if isinstance(error, NotSaved):
        log.error("%s", error)  # it names files of this machine
        return JSONResponse({"detail": "the service's disk takes no change; its log says why"}, 507)
    if isinstance(error, Full):
        return JSONResponse({"detail": str(error)}, 507)
    status = 500 if isinstance(error, CheckpointError) else 404 if isinstance(error, UnknownAdapter) else 422
    return JSONResponse({"detail": told(error)}, status)


def told(error: Exception) -> str:
    """What a caller is told of an error on purpose."""
    if not isinstance(error, CheckpointError):
        return str(error)
    # Nothing that the caller could mend, and it names files of this machine.
    log.error("%s", error)
    return "a file of the service cannot be read; its log says which"


async def wrong_request(_: Request, error: RequestValidationError) -> JSONResponse:
    """What is wrong with which field; not what came in it, which the caller knows and JSON may not be able to say."""
    told = [{name: found[name] for name in ("type", "loc", "msg")} for found in error.errors()]
    return JSONResponse({"detail": told}, 422)
