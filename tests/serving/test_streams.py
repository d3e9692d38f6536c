"""What ends a stream early is told in its last line."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from hyperflax.errors import CheckpointError
from hyperflax.serving.middleware import Figures
from hyperflax.serving.service import Answer
from hyperflax.serving.streams import Deadline, lines

FIRST = {"index": 0, "text": "a", "done": False, "log_prob": 0.0}


def read(rest: AsyncGenerator[list[Answer], None], seconds: float) -> list[dict[str, Any]]:
    """The lines of a stream that began with "a", may take `seconds` more and was asked for with 5."""

    async def found() -> list[dict[str, Any]]:
        service: Any = None  # what its gauges read, when they are asked
        deadline = Deadline(5.0, time.monotonic() + seconds)
        sent = [part async for part in lines([Answer("a", False, 0.0)], rest, deadline, Figures(service))]
        return [json.loads(line) for line in "".join(sent).splitlines()]

    return asyncio.run(found())


def test_a_deadline_is_named_as_it_was_asked_for() -> None:
    async def never() -> AsyncGenerator[list[Answer], None]:
        await asyncio.sleep(60)
        yield []

    assert read(never(), 0.01) == [FIRST, {"error": "no answer within 5 s"}]


def test_what_is_answered_before_a_deadline_counts() -> None:
    async def found() -> float:
        async def never() -> AsyncGenerator[list[Answer], None]:
            await asyncio.sleep(60)
            yield []

        service: Any = None
        figures, first = Figures(service), [Answer("a", True, 0.0), Answer("b", False, 0.0)]
        async for _ in lines(first, never(), Deadline.within(0.01), figures):
            pass
        return figures.registry.get_sample_value("hyperflax_predictions_total")

    assert asyncio.run(found()) == 1


def test_a_damaged_file_of_the_service_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    async def damaged() -> AsyncGenerator[list[Answer], None]:
        raise CheckpointError("/srv/adapters/x/adapter.safetensors: damaged")
        yield []

    assert read(damaged(), 60) == [FIRST, {"error": "a file of the service is damaged; its log says which"}]
    assert "/srv/adapters/x" in caplog.text
