"""What ends a stream early is told in its last line."""

from __future__ import annotations

import asyncio
import json
import time
import types
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from hyperflax.errors import CheckpointError
from hyperflax.serving.http import create_app
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


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_no_longer_decoded_for(stream: bool) -> None:
    async def run() -> None:
        begun, closed = asyncio.Event(), asyncio.Event()

        async def predict(*_: Any, steps: bool, **__: Any) -> AsyncGenerator[list[Answer], None]:
            try:
                if steps:
                    yield [Answer("a", False, 0.0)]
                begun.set()
                await asyncio.sleep(60)
                yield [Answer("b", True, 0.0)]
            finally:
                closed.set()

        body = json.dumps({"inputs": ["a"], "stream": stream}).encode()
        asked = [{"type": "http.request", "body": body}]

        async def receive() -> dict[str, Any]:
            if asked:
                return asked.pop()
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        scope = {"type": "http", "method": "POST", "path": "/v1/predictions", "query_string": b""}
        scope["headers"] = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        service: Any = types.SimpleNamespace(predict=predict)
        async with asyncio.timeout(30):
            await create_app(service)(scope, receive, send)
        assert closed.is_set()

    asyncio.run(run())


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

    assert read(damaged(), 60) == [FIRST, {"error": "a file of the service cannot be read; its log says which"}]
    assert "/srv/adapters/x" in caplog.text
