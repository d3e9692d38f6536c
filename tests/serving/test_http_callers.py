"""Many callers of the service at once, on one loop: each is answered as if alone, and what was accepted is answered."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import threading
from typing import Any

import pytest

from hyperflax.serving.bounds import ServiceConfig
from tests.evaluation.micro import hypermodel
from tests.serving.http_clients import INPUTS, SIZES, examples, served, texts


def test_many_callers_get_what_each_would_get_alone(tmp_path: pathlib.Path) -> None:
    model = hypermodel()
    tasks = [[(letter, letter.upper()), (letter * 2, letter)] for letter in "abcd"]
    expected = [model.predict(INPUTS, model.adapt(pairs)) for pairs in tasks]

    async def run() -> None:
        async with served(tmp_path) as (service, http):
            # Two ask for each adapter at once: it is made once.
            bodies = [examples(pairs, estimate=False) for pairs in tasks for _ in range(2)]
            made = await asyncio.gather(*(http.post("/v1/adapters", json=body) for body in bodies))
            assert sorted(answer.status_code for answer in made) == [200] * 4 + [201] * 4
            keys = [answer.json()["id"] for answer in made[::2]]
            asked = [number % 4 for number in range(40)]
            answers = await asyncio.gather(
                *(http.post("/v1/predictions", json={"inputs": INPUTS, "adapter": keys[n]}) for n in asked)
            )
            for number, answer in zip(asked, answers, strict=True):
                assert texts(answer) == expected[number]
            assert len(service.engine.pool) == SIZES.hosted < len(keys)

    asyncio.run(run())


def test_too_much_at_once_is_refused_and_nothing_accepted_is_lost(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with served(tmp_path, ServiceConfig(rows=2, resident=2, hosted=2, waiting=6, adapting=1)) as (
            service,
            http,
        ):
            answers = await asyncio.gather(*(http.post("/v1/predictions", json={"inputs": INPUTS}) for _ in range(20)))
            refused = [answer for answer in answers if answer.status_code == 429]
            assert len(refused) == 18
            assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
            for answer in answers:
                if answer not in refused:
                    assert texts(answer) == hypermodel().predict(INPUTS)
            assert service.waiting == 0
            ever = await http.post("/v1/predictions", json={"inputs": ["a"] * 7})  # no try has room, now or later
            assert (ever.status_code, ever.json()["detail"]) == (422, "inputs: expected at most 6 at once, got 7")
            go_on, adapt = threading.Event(), service.model.adapt

            def held(*arguments: Any, **options: Any) -> Any:
                go_on.wait()
                return adapt(*arguments, **options)

            monkeypatch.setattr(service.model, "adapt", held)
            bodies = [examples([(letter, "x")], estimate=False) for letter in "abcde"]
            made = [asyncio.ensure_future(http.post("/v1/adapters", json=body)) for body in bodies]
            while sum(answer.done() for answer in made) < 4:
                await asyncio.sleep(0.01)
            go_on.set()
            assert sorted(answer.status_code for answer in await asyncio.gather(*made)) == [201, 429, 429, 429, 429]
            assert service.maker.adapting == 0

    asyncio.run(run())


def test_what_is_being_made_counts_among_what_is_kept(tmp_path: pathlib.Path) -> None:
    async def run() -> None:
        async with served(tmp_path, dataclasses.replace(SIZES, kept=3)) as (service, http):
            bodies = [examples([(letter, "x")], estimate=False) for letter in "abcde"]
            made = await asyncio.gather(*(http.post("/v1/adapters", json=body) for body in bodies))
            assert sorted(answer.status_code for answer in made) == [201, 201, 201, 507, 507]
            assert service.maker.kept == 3

    asyncio.run(run())


def test_a_caller_who_reads_nothing_holds_no_place(tmp_path: pathlib.Path) -> None:
    async def run() -> None:
        async with served(tmp_path, ServiceConfig(rows=2, resident=2, hosted=2, waiting=3)) as (service, _):
            asked = [service.predict(INPUTS, steps=True) for _ in range(3)]
            read = []
            for answers in asked:
                read.append(await anext(answers))  # and no further
                async with asyncio.timeout(60):
                    while service.waiting:
                        await asyncio.sleep(0.01)
            for first, answers in zip(read, asked, strict=True):
                # Nothing of what came meanwhile has been kept for him but the end, if the first was not that already.
                rest = [answer async for answer in answers]
                assert len(rest) <= 1
                assert [answer.done for answer in [first, *rest][-1]] == [True] * len(INPUTS)
            assert service.waiting == 0

    asyncio.run(run())


def test_a_deadline_ends_the_decoding(tmp_path: pathlib.Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as (service, http):
            late = {"inputs": ["a"] * 50, "seconds": 1e-6}
            assert (await http.post("/v1/predictions", json=late)).status_code == 504
            # The same rows serve the next caller, and nobody is left behind.
            assert texts(await http.post("/v1/predictions", json={"inputs": INPUTS})) == hypermodel().predict(INPUTS)
            assert service.waiting == 0
            assert service.engine.idle
            streamed = await http.post("/v1/predictions", json={**late, "stream": True})
            assert streamed.status_code == 504

    asyncio.run(run())


def test_what_was_accepted_is_answered_before_the_end(tmp_path: pathlib.Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as (service, http):
            asked = [asyncio.ensure_future(http.post("/v1/predictions", json={"inputs": INPUTS})) for _ in range(10)]
            made = asyncio.ensure_future(http.post("/v1/adapters", json=examples(estimate=False)))
            # Of the inputs some are still being tokenised, in threads: they are accepted all the same.
            while service.waiting < 30 or service.maker.adapting < 1:
                await asyncio.sleep(0)
            ending = asyncio.ensure_future(asyncio.to_thread(service.stop))
            while not service._closing:
                await asyncio.sleep(0)
            late = await http.post("/v1/predictions", json={"inputs": INPUTS})
            assert late.status_code == 503
            assert int(late.headers["retry-after"]) > 0
            for answer in await asyncio.gather(*asked):
                assert texts(answer) == hypermodel().predict(INPUTS)
            assert (await made).status_code == 201
            await ending

    asyncio.run(run())


def test_an_end_waits_no_longer_than_it_may(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with served(tmp_path) as (service, http):
            go_on, began, adapt = threading.Event(), threading.Event(), service.model.adapt

            def slow(*arguments: Any, **options: Any) -> Any:
                began.set()
                go_on.wait()
                return adapt(*arguments, **options)

            monkeypatch.setattr(service.model, "adapt", slow)
            made = asyncio.ensure_future(http.post("/v1/adapters", json=examples(estimate=False)))
            await asyncio.to_thread(began.wait)
            assert not await asyncio.to_thread(service.stop, 0.1)
            go_on.set()
            assert (await made).status_code == 201
            assert await asyncio.to_thread(service.stop)

    asyncio.run(run())


def test_an_engine_that_breaks_at_the_end_ends(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call to end is taken already, and no other will come."""

    async def run() -> None:
        async with served(tmp_path) as (service, http):
            ended = threading.Event()

            def turn() -> None:
                ended.wait()
                raise RuntimeError("device lost")

            monkeypatch.setattr(service.engine, "turn", turn)
            asked = asyncio.ensure_future(http.post("/v1/predictions", json={"inputs": INPUTS}))
            while not service.waiting:
                await asyncio.sleep(0)
            ending = asyncio.ensure_future(asyncio.to_thread(service.stop, 60))
            while not service._closing:
                await asyncio.sleep(0)
            await asyncio.sleep(0.2)
            ended.set()
            assert await ending
            assert (await asked).status_code == 503

    asyncio.run(run())


def test_a_broken_engine_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with served(tmp_path) as (service, http):
            texts(await http.post("/v1/predictions", json={"inputs": INPUTS}))

            def turn() -> None:
                raise RuntimeError("device lost")

            monkeypatch.setattr(service.engine, "turn", turn)
            answers = await asyncio.gather(*(http.post("/v1/predictions", json={"inputs": INPUTS}) for _ in range(3)))
            answers.append(await http.post("/v1/adapters", json=examples(estimate=False)))
            for answer in answers:
                told = "the service has failed; its log says why"
                assert (answer.status_code, answer.json()["detail"]) == (503, told)
                assert "retry-after" not in answer.headers  # nothing brings it back
            assert (await http.get("/healthz")).status_code == 500
            assert (await http.get("/readyz")).status_code == 503
            assert (await http.post("/v1/predictions", json={"inputs": INPUTS})).status_code == 503

    asyncio.run(run())
