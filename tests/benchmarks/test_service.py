"""What `benchmarks.service` calls lost is found: a service that forgets or changes its mind is not one that passes."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random

import httpx2
import pytest

from benchmarks.service import figures
from benchmarks.service_clients import ASK, MAKE, Load, Tally
from hyperflax.padding import rounded_up

TEXT = "an\u2028answer"  # one line of JSON, though two of `str.splitlines`


class Pretender:
    """Answers as the service does; `forget`, `estimates` and `text` are what it does wrong."""

    def __init__(self) -> None:
        self.made: dict[str, bool] = {}
        self.text, self.estimates, self.cut = TEXT, True, 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if self.cut:
            self.cut -= 1
            raise httpx2.ReadError("the process was killed")
        path = request.url.path
        if request.method == "GET" and path == MAKE:
            return httpx2.Response(200, json={"adapters": list(self.made), "next": None, "total": len(self.made)})
        if request.method == "GET":
            known = self.made[path.removeprefix(f"{MAKE}/")] and self.estimates
            return httpx2.Response(200, json={"estimate": {} if known else None})
        body = json.loads(request.content)
        if path == MAKE:
            key = f"{len(self.made):032x}"
            self.made[key] = body["estimate"]
            return httpx2.Response(201, json={"id": key, "estimate": {} if body["estimate"] else None})
        assert path == ASK
        rows = [{"index": i, "text": f"{self.text} {x}", "done": True} for i, x in enumerate(body["inputs"])]
        if body["stream"]:
            return httpx2.Response(200, text="".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[::-1]))
        return httpx2.Response(200, json={"predictions": rows})


def lost(*, forget: bool = False, estimates: bool = True, text: str = TEXT, cut: int = 0) -> Load:
    """Makes eight adapters, asks them, lets something go wrong, and looks for it."""

    async def run() -> Load:
        service = Pretender()
        load = Load(lambda: 1)
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(service)) as http:
            for number in range(8):
                await load.make(http, estimate=number % 2 == 0)
            for known in load.known:
                await load.ask(http, known, random.Random(0))
            if forget:
                del service.made[load.known[3].key]
            service.text, service.estimates, service.cut = text, estimates, cut
            await load.ask(http, load.known[0], random.Random(0))
            await load.check(http)
        return load

    return asyncio.run(run())


def test_nothing_is_lost_by_a_service_that_keeps_its_word() -> None:
    load = lost()
    assert load.tally.lost == []
    assert load.tally.answered == 8 + 8 + 1 + 8
    assert load.tally.inputs > load.tally.answered
    assert {name: len(found) for name, found in load.tally.seconds.items()} == {
        "adapters with an estimate": 4,
        "adapters": 4,
        "predictions": 25,
    }


@pytest.mark.parametrize(
    ("wrong", "told", "times"),
    [
        ({"forget": True}, "the adapter is gone", 1),
        ({"estimates": False}, "its estimate is gone", 4),
        ({"text": "another"}, "got another answer", 9),
    ],
)
def test_what_is_lost_is_found(wrong: dict[str, bool | str], told: str, times: int) -> None:
    found = lost(**wrong).tally.lost
    assert len(found) >= times
    assert all(told in line for line in found)


def test_a_service_that_settles_has_compiled_every_length() -> None:
    service, sizes = Pretender(), set()

    def answer(request: httpx2.Request) -> httpx2.Response:
        shown = json.loads(request.content)["examples"]
        assert len({(pair["input"], pair["target"]) for pair in shown}) == 4
        longest = (max(len(pair[part]) + 1 for pair in shown) for part in ("input", "target"))
        sizes.add(tuple(rounded_up(max(length, least)) for length, least in zip(longest, (32, 8), strict=True)))
        return service(request)

    async def run() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
            await Load(lambda: 1).warm(http)

    asyncio.run(run())
    assert sizes == set(itertools.product((32, 48, 64), (8, 12, 16, 24, 32, 48, 64)))
    assert list(service.made.values()) == [True] * len(sizes)


def test_what_a_kill_cuts_off_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_: float) -> None:
        pass

    monkeypatch.setattr("asyncio.sleep", at_once)
    load = lost(cut=3)
    assert (load.tally.lost, dict(load.tally.cut_off)) == ([], {ASK: 3})


def test_memory_is_compared_between_the_halves_of_the_time_since_nothing_was_new() -> None:
    tally = Tally(answered=200, inputs=500)
    tally.seconds["predictions"] = [0.1] * 199 + [9.0]
    tally.memory = [(second + 0.5, (second // 60 + 1) * 2**20) for second in range(180)]
    found = figures(tally, 180.0, 60.0, argparse.Namespace(clients=1, adapters=1, kills=0, making=0.0))
    assert found["resident_mib"] == {
        "settled_after_seconds": 60.0,
        "first_half_since": 2.0,
        "second_half_since": 3.0,
        "by_minute": [1.0, 2.0, 3.0],
    }
    assert found["memory_ratio"] == 1.5
    assert found["latency_seconds"] == {"predictions": {"p50": 0.1, "p90": 0.1, "p99": 0.1, "max": 9.0}}
    assert (found["requests"], found["adapters_made"]) == (200, 0)


def test_a_step_on_one_side_of_the_middle_is_seen() -> None:
    """The medians of both halves are equal: the first one's comes after the step, and just so."""
    tally = Tally(memory=[(second, (1600 if second < 45 else 1692) * 2**20) for second in range(200)])
    found = figures(tally, 200.0, 0.0, argparse.Namespace(clients=1, adapters=1, kills=0, making=0.0))
    assert found["memory_ratio"] == pytest.approx(1692 / (1600 + 92 * 0.55), abs=1e-4)


def test_a_run_of_seconds_has_no_memory_to_compare() -> None:
    tally = Tally(answered=20, memory=[(1.0, 2**20)])
    found = figures(tally, 2.5, 0.5, argparse.Namespace(clients=1, adapters=1, kills=0, making=0.0))
    told = found["resident_mib"]
    assert (told["first_half_since"], told["second_half_since"], told["by_minute"]) == (1.0, None, [1.0])
    assert found["memory_ratio"] is None
