"""The clients of `benchmarks.service`: what they ask, what they were answered, and what of it was lost."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import json
import random
import time
from collections.abc import Callable
from typing import Any

import httpx2
from tqdm import tqdm

from hyperflax_tasks.strings.source import make_examples
from hyperflax_tasks.strings.split import load_split

TRIES = 300  # of one request, a second apart where the service is not there
ESTIMATED = 0.25  # share of new adapters that are asked for with an estimate
# Bytes: with an end of sequence they are rounded up to 32, 48 and 64, and to 8, 12, 16, 24, 32, 48 and 64.
INPUTS, TARGETS = (4, 40, 60), (6, 10, 14, 20, 28, 40, 60)
MAKE, ASK = "/v1/adapters", "/v1/predictions"


@dataclasses.dataclass(frozen=True)
class Known:
    """An adapter that the service has answered.

    Attributes:
      key: its id.
      number: of its examples.
      inputs: of its task, some of which it is asked.
      estimated: whether it was answered with an estimate.
    """

    key: str
    number: int
    inputs: list[str]
    estimated: bool


@dataclasses.dataclass
class Tally:
    """What happened."""

    answered: int = 0
    inputs: int = 0
    cut_off: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    lost: list[str] = dataclasses.field(default_factory=list)
    memory: list[tuple[float, int]] = dataclasses.field(default_factory=list)


class Load:
    """Clients, and what they have seen.

    Args:
      port: of the service, which may be another one after a kill.

    Attributes:
      making: adapters that clients wait for.
    """

    def __init__(self, port: Callable[[], int]):
        self.port, self.tally = port, Tally()
        held_out = load_split().held_out
        self.tasks = random.Random(0).sample(held_out, len(held_out))
        self.numbers, self.making = itertools.count(), 0
        self.known: list[Known] = []
        self.seen: dict[tuple[str, str], str] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port()}"

    async def send(self, http: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> httpx2.Response:
        """Sends a request until it is answered."""
        for _ in range(TRIES):
            try:
                answer = await http.post(f"{self.address}{path}", json=body)
            except httpx2.TransportError:
                self.tally.cut_off[path] += 1
                await asyncio.sleep(1)
                continue
            if answer.status_code not in (429, 503):
                return answer
            self.tally.refused[path] += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
        raise SystemExit(f"{path}: not answered in {TRIES} tries")

    async def make(self, http: httpx2.AsyncClient, estimate: bool) -> None:
        """Makes an adapter of fresh examples, and asks it something."""
        number = next(self.numbers)
        pairs = make_examples(self.tasks[number % len(self.tasks)], number, 24, "eval")
        shown = [{"input": x, "target": y} for x, y in pairs[:4]]
        inputs = [x for x, _ in pairs if len(x.encode()) < 60]
        began = time.monotonic()
        self.making += 1
        answer = await self.send(http, MAKE, {"examples": shown, "estimate": estimate})
        self.making -= 1
        if answer.status_code == 422 or not inputs:  # longer than the model takes
            return
        if answer.status_code not in (200, 201):  # 200: it was made when a kill cut the answer off
            self.tally.lost.append(f"an adapter: {answer.status_code} {answer.text[:200]}")
            return
        self.tally.seconds["adapters with an estimate" if estimate else "adapters"].append(time.monotonic() - began)
        known = Known(answer.json()["id"], number, inputs, answer.json()["estimate"] is not None)
        self.known.append(known)
        await self.ask(http, known, random.Random(number))

    async def warm(self, http: httpx2.AsyncClient) -> None:
        """Asks for estimates of made-up examples, of every length that tasks have and refining is compiled for."""
        for given, wanted in itertools.product(INPUTS, TARGETS):
            shown = [{"input": letter * given, "target": letter.upper() * wanted} for letter in "abcd"]
            answer = await self.send(http, MAKE, {"examples": shown, "estimate": True})
            answer.raise_for_status()

    async def ask(self, http: httpx2.AsyncClient, known: Known, rng: random.Random) -> None:
        """Asks an adapter some inputs of its task."""
        inputs = rng.sample(known.inputs, min(rng.randint(1, 4), len(known.inputs)))
        body = {"inputs": inputs, "adapter": known.key, "stream": rng.random() < 0.25}
        began = time.monotonic()
        answer = await self.send(http, ASK, body)
        rows = [json.loads(line) for line in answer.text.split("\n") if line] if body["stream"] else [answer.json()]
        if answer.status_code != 200 or "error" in rows[-1]:
            self.tally.lost.append(f"{known.key}: {answer.status_code} {answer.text[-200:]}")
            return
        if not body["stream"]:
            rows = rows[0]["predictions"]
        texts = [text for _, text in sorted({row["index"]: row["text"] for row in rows if row["done"]}.items())]
        self.tally.seconds["predictions"].append(time.monotonic() - began)
        self.tally.answered += 1
        self.tally.inputs += len(inputs)
        for text, prediction in zip(inputs, texts, strict=True):
            if self.seen.setdefault((known.key, text), prediction) != prediction:
                self.tally.lost.append(f"{known.key}: {text!r} got another answer")

    async def client(self, http: httpx2.AsyncClient, number: int, making: float, goes_on: Any, bar: tqdm) -> None:
        """Asks one request after the other."""
        rng = random.Random(number)
        while goes_on():
            if rng.random() < making:
                await self.make(http, rng.random() < ESTIMATED)
            else:
                await self.ask(http, rng.choice(self.known), rng)
            bar.update()

    async def check(self, http: httpx2.AsyncClient) -> None:
        """Looks whether every adapter that was answered is there, with its estimate, and asks each once more."""
        listed = await self.listed(http)

        async def one(known: Known) -> None:
            if known.key not in listed:
                self.tally.lost.append(f"{known.key}: the adapter is gone")
                return
            about = (await http.get(f"{self.address}{MAKE}/{known.key}")).json()
            if known.estimated and about["estimate"] is None:
                self.tally.lost.append(f"{known.key}: its estimate is gone")
            await self.ask(http, known, random.Random(known.number))  # what it was asked when it was made

        await asyncio.gather(*map(one, self.known))

    async def listed(self, http: httpx2.AsyncClient) -> set[str]:
        """All ids that the service lists."""
        found, after = set(), {}
        while True:
            page = (await http.get(f"{self.address}{MAKE}", params={"limit": 1000, **after})).json()
            found |= set(page["adapters"])
            if page["next"] is None:
                return found
            after = {"after": page["next"]}
