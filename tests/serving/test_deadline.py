"""A stream's deadline: counted from the request, and named as it was asked for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from hyperflax.serving.http import _lines
from hyperflax.serving.middleware import Figures
from hyperflax.serving.service import Answer


def test_a_stream_that_takes_too_long_names_its_deadline() -> None:
    async def never() -> AsyncGenerator[list[Answer], None]:
        await asyncio.sleep(60)
        yield []

    async def read() -> list[dict[str, Any]]:
        service: Any = None  # what its gauges read, when they are asked
        lines = _lines([Answer("a", False, 0.0)], never(), 5.0, time.monotonic() + 0.01, Figures(service))
        return [json.loads(line) async for line in lines]

    assert asyncio.run(read()) == [
        {"index": 0, "text": "a", "done": False, "log_prob": 0.0},
        {"error": "no answer within 5 s"},
    ]
