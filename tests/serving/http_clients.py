"""Clients of a service with a hypermodel of a few hundred parameters, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
from fastapi.testclient import TestClient

from hyperflax.serving.bounds import ServiceConfig
from hyperflax.serving.http import create_app
from hyperflax.serving.service import Service
from tests.evaluation.micro import hypermodel

PAIRS = [("ab", "AB"), ("cd", "CD"), ("ef", "EF")]
INPUTS = ["gh", "i", "jklm"]
SIZES = ServiceConfig(rows=4, resident=2, hosted=3)


def examples(pairs: list[tuple[str, str]] = PAIRS, **options: Any) -> dict[str, Any]:
    return {"examples": [{"input": x, "target": y} for x, y in pairs], **options}


@contextlib.contextmanager
def client(folder: pathlib.Path, config: ServiceConfig = SIZES, **options: Any) -> Iterator[TestClient]:
    service = Service(hypermodel(), folder, config)
    with TestClient(create_app(service, **options)) as http:
        http.service = service
        wait_until_ready(http)
        yield http


def wait_until_ready(http: Any) -> None:
    while http.get("/readyz").status_code != 200:
        assert http.get("/healthz").status_code == 200
        time.sleep(0.05)


def texts(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    rows = response.json()["predictions"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert all(row["done"] for row in rows)
    return [row["text"] for row in rows]


def adapters_made(http: TestClient) -> int:
    (line,) = re.findall(r"^hyperflax_adapters_made_total (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return int(float(line))


@contextlib.asynccontextmanager
async def served(
    folder: pathlib.Path, config: ServiceConfig = SIZES
) -> AsyncIterator[tuple[Service, httpx2.AsyncClient]]:
    service = Service(hypermodel(), folder, config)
    service.start()
    transport = httpx2.ASGITransport(create_app(service))
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            yield service, http
    finally:
        await asyncio.to_thread(service.stop)
