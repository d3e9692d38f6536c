"""Around every request: figures for Prometheus, and a bound on its size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hyperflax.serving.service import Answer, Service


class Figures:
    """What Prometheus reads."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "hyperflax"}
        self.requests = Counter("requests", "requests answered", ["method", "route", "status"], **made)
        self.seconds = Histogram("request_seconds", "time until the answer begins", ["route"], **made)
        self.adapters = Counter("adapters_made", "adapters made", **made)
        self.predictions = Counter("predictions", "inputs answered", **made)
        for name, told, read in (
            ("waiting_inputs", "inputs that wait or are being decoded", lambda: service.waiting),
            ("waiting_adapters", "adapters that wait or are being made", lambda: service.adapting),
            ("hosted_adapters", "adapters in host memory", lambda: len(service.engine.pool)),
            ("ready", "1 when everything is compiled", lambda: float(service.ready)),
        ):
            Gauge(name, told, **made).set_function(read)

    def count(self, answers: Sequence[Answer]) -> None:
        """Counts inputs that are answered."""
        self.predictions.inc(sum(answer.done for answer in answers))

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)


class Measure:
    """ASGI middleware: counts requests and takes their time, by route: of paths there are any number."""

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
            self.figures.requests.labels(scope["method"], route(), status).inc()


class BodyLimit:
    """ASGI middleware: a body above the limit is refused with 413, however its length is told."""

    def __init__(self, app: Any, limit: int):
        self.app, self.limit = app, limit
        self.told = f"expected a body of at most {limit} bytes"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limit:
            return await JSONResponse({"detail": self.told}, 413)(scope, receive, send)
        size = 0

        async def counted() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limit:
                raise HTTPException(413, self.told)
            return message

        return await self.app(scope, counted, send)
