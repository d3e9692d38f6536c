"""Adapters that several callers ask for at once, or whose callers have left."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hyperflax.errors import DataError
from hyperflax.serving import maker as maker_module
from hyperflax.serving.bounds import DEFAULT_CONFIG, Overloaded, ServiceConfig
from hyperflax.serving.maker import Maker
from hyperflax.serving.service import Service
from hyperflax.serving.store import AdapterStore
from tests.evaluation.micro import hypermodel

EXAMPLES = [("ab", "AB"), ("cd", "CD")]


def run(
    folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[Maker, threading.Event, threading.Event], Coroutine[Any, Any, None]],
    config: ServiceConfig = DEFAULT_CONFIG,
) -> None:
    """Runs `ask` with a maker that says when an adapter is made, waits to save it, and fails to estimate it."""
    begun, go_on = threading.Event(), threading.Event()
    save = AdapterStore.save

    def wait(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        save(*arguments)

    def fail(*_: Any, **__: Any) -> None:
        raise DataError("no estimate of these")

    monkeypatch.setattr(AdapterStore, "save", wait)
    monkeypatch.setattr(maker_module, "estimate", fail)

    async def asked() -> None:
        service = Service(hypermodel(), folder, config)
        try:
            async with asyncio.timeout(120):
                await ask(service.maker, begun, go_on)
        finally:
            go_on.set()
            await asyncio.to_thread(service.stop)

    asyncio.run(asked())


def test_an_estimate_that_fails_is_told_to_him_alone_who_asked_for_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(maker: Maker, begun: threading.Event, go_on: threading.Event) -> None:
        estimated = asyncio.ensure_future(maker.adapt(EXAMPLES))
        await asyncio.to_thread(begun.wait, 60)
        plain = [asyncio.ensure_future(maker.adapt(EXAMPLES, with_estimate=False)) for _ in range(2)]
        while len(maker._asked) < 3:
            await asyncio.sleep(0.01)
        go_on.set()
        with pytest.raises(DataError, match="no estimate of these"):
            await estimated
        for made, new in await asyncio.gather(*plain):
            assert made.estimate is None
            assert not new
        assert maker.made == 1

    run(tmp_path, monkeypatch, ask)


def test_an_error_that_nobody_waits_for_is_a_line_in_the_log(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(maker: Maker, begun: threading.Event, go_on: threading.Event) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await maker.adapt(EXAMPLES)
        await asyncio.to_thread(begun.wait, 60)
        go_on.set()
        while maker._asked:
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.WARNING):
        run(tmp_path, monkeypatch, ask)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("hyperflax.serving", "WARNING")
    assert "no estimate of these" in record.getMessage()
    assert record.exc_info is None


def test_no_more_callers_wait_for_an_adapter_than_may_wait(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(maker: Maker, begun: threading.Event, go_on: threading.Event) -> None:
        asked = [asyncio.ensure_future(maker.adapt(EXAMPLES, with_estimate=False)) for _ in range(2)]
        await asyncio.to_thread(begun.wait, 60)
        with pytest.raises(Overloaded, match="2 callers wait for adapters"):
            await maker.adapt(EXAMPLES, with_estimate=False)
        go_on.set()
        assert sorted(new for _, new in await asyncio.gather(*asked)) == [False, True]
        assert not (await maker.adapt(EXAMPLES, with_estimate=False))[1]

    run(tmp_path, monkeypatch, ask, ServiceConfig(waiting=2))
