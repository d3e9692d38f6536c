"""Asks `hyperflax serve` from many clients for a while, kills it on the way, and counts what was lost.

    python -m benchmarks.service [--requests 20000] [--minutes 15] [--clients 32] [--kills 3] [--adapters 64]

The service is a process of its own with the model `strings`. Every client sends one request after the other: one to
four inputs for one of the adapters, whole or streamed. A request that is cut off by a kill, or refused because too much
is waiting, is sent again. The kills are SIGKILL, in the first third of the run; so the process that is measured in the
last two thirds is one and the same. It runs until the requests are sent and the minutes have passed.

Lost is an adapter whose id was answered and that is not there later, an answer that differs from what the same adapter
and input got before, or a request that is never answered. Resident memory is read every second.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import httpx2
import psutil
from tqdm import tqdm

from hyperflax.files import write_json
from hyperflax.versions import versions
from hyperflax_tasks.strings.source import make_examples
from hyperflax_tasks.strings.split import load_split

TRIES = 300  # of one request, a second apart where the service is not there


@dataclasses.dataclass
class Tally:
    """What happened."""

    answered: int = 0
    inputs: int = 0
    cut_off: int = 0
    refused: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    memory: list[tuple[float, int]] = dataclasses.field(default_factory=list)


class Server:
    """The process, which may be killed and started again in the same folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.port = folder, 0

    def start(self) -> None:
        command = [sys.executable, "-m", "hyperflax", "serve", "--model", "strings", "--port", str(self.port)]
        log = self.folder / "log.txt"
        with log.open("w") as file:
            self.process = subprocess.Popen([*command, "--adapters", str(self.folder / "adapters")], stderr=file)
        while (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())) is None:
            if self.process.poll() is not None:
                raise SystemExit(f"the service did not start:\n{log.read_text()}")
            time.sleep(0.1)
        self.port = int(found[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def resident(self) -> int:
        """Bytes."""
        return psutil.Process(self.process.pid).memory_info().rss


class Load:
    """Clients, and what they have seen."""

    def __init__(self, server: Server, adapters: int, seed: int):
        self.server, self.tally = server, Tally()
        self.tasks = random.Random(seed).sample(load_split().held_out, adapters)
        self.examples = [make_examples(task, seed, 24, "eval") for task in self.tasks]
        self.keys: list[str] = []
        self.seen: dict[tuple[str, str], str] = {}

    async def send(self, http: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> httpx2.Response:
        """Sends a request until it is answered."""
        for _ in range(TRIES):
            try:
                answer = await http.post(f"http://127.0.0.1:{self.server.port}{path}", json=body)
            except httpx2.TransportError:
                self.tally.cut_off += 1
                await asyncio.sleep(1)
                continue
            if answer.status_code not in (429, 503):
                return answer
            self.tally.refused += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
        raise SystemExit(f"{path}: not answered in {TRIES} tries")

    async def make(self, http: httpx2.AsyncClient) -> None:
        """Makes all adapters."""
        for pairs in tqdm(self.examples, unit="adapter", desc="adapters"):
            shown = [{"input": x, "target": y} for x, y in pairs[:4]]
            answer = await self.send(http, "/v1/adapters", {"examples": shown, "estimate": False})
            if answer.status_code == 422:  # longer than the model takes
                self.keys.append("")
                continue
            answer.raise_for_status()
            self.keys.append(answer.json()["id"])

    async def client(self, http: httpx2.AsyncClient, number: int, goes_on: Any, bar: tqdm) -> None:
        """Asks one request after the other."""
        rng = random.Random(number)
        while goes_on():
            task = rng.choice([i for i, key in enumerate(self.keys) if key])
            inputs = [x for x, _ in rng.sample(self.examples[task], rng.randint(1, 4)) if len(x.encode()) < 60]
            if not inputs:
                continue
            body = {"inputs": inputs, "adapter": self.keys[task], "stream": rng.random() < 0.25}
            began = time.monotonic()
            answer = await self.send(http, "/v1/predictions", body)
            texts = self.texts(answer, body)
            if texts is None:  # the stream was cut off by a kill
                self.tally.cut_off += 1
                continue
            self.tally.seconds.append(time.monotonic() - began)
            self.tally.answered += 1
            self.tally.inputs += len(inputs)
            bar.update()
            for text, prediction in zip(inputs, texts, strict=True):
                if self.seen.setdefault((self.keys[task], text), prediction) != prediction:
                    self.tally.lost.append(f"{self.keys[task]}: {text!r} got another answer")

    def texts(self, answer: httpx2.Response, body: dict[str, Any]) -> list[str] | None:
        if answer.status_code != 200:
            self.tally.lost.append(f"{body['adapter']}: {answer.status_code} {answer.text[:200]}")
            return None
        if not body["stream"]:
            return [row["text"] for row in answer.json()["predictions"]]
        rows = [json.loads(line) for line in answer.text.splitlines()]
        last = {row["index"]: row for row in rows if "index" in row}
        done = [last[index]["text"] for index in sorted(last) if last[index]["done"]]
        return done if len(done) == len(body["inputs"]) else None

    async def listed(self, http: httpx2.AsyncClient) -> set[str]:
        """All ids that the service lists."""
        found, after = set(), {}
        while True:
            address = f"http://127.0.0.1:{self.server.port}/v1/adapters"
            page = (await http.get(address, params={"limit": 1000, **after})).json()
            found |= set(page["adapters"])
            if page["next"] is None:
                return found
            after = {"after": page["next"]}

    async def watch(self, began: float) -> None:
        while True:
            await asyncio.sleep(1)
            try:
                self.tally.memory.append((time.monotonic() - began, self.server.resident))
            except psutil.Error:
                continue

    async def kills(self, seconds: list[float]) -> None:
        for pause in seconds:
            await asyncio.sleep(pause)
            await asyncio.to_thread(self.server.kill)
            await asyncio.to_thread(self.server.start)


async def run(arguments: argparse.Namespace, server: Server) -> dict[str, Any]:
    load = Load(server, arguments.adapters, seed=0)
    limits = httpx2.Limits(max_connections=arguments.clients)
    async with httpx2.AsyncClient(timeout=300, limits=limits) as http:
        await load.make(http)
        began, least = time.monotonic(), 60 * arguments.minutes
        watch = asyncio.ensure_future(load.watch(began))
        kills = asyncio.ensure_future(load.kills([least / 3 / (arguments.kills + 1)] * arguments.kills))

        def goes_on() -> bool:
            return load.tally.answered < arguments.requests or time.monotonic() - began < least

        with tqdm(total=arguments.requests, unit="request") as bar:
            await asyncio.gather(*(load.client(http, n, goes_on, bar) for n in range(arguments.clients)))
        seconds = time.monotonic() - began
        await kills
        watch.cancel()
        there = {key for key in load.keys if key}
        load.tally.lost += [f"{key}: the adapter is gone" for key in sorted(there - await load.listed(http))]
    return figures(load.tally, seconds, arguments)


def figures(tally: Tally, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    second, last = (
        [size for at, size in tally.memory if seconds * third / 3 <= at < seconds * (third + 1) / 3] for third in (1, 2)
    )
    quantiles = statistics.quantiles(tally.seconds, n=100)
    return {
        "clients": arguments.clients,
        "adapters": arguments.adapters,
        "kills": arguments.kills,
        "seconds": round(seconds, 1),
        "requests": tally.answered,
        "inputs": tally.inputs,
        "requests_per_second": round(tally.answered / seconds, 2),
        "latency_seconds": {f"p{p}": round(quantiles[p - 1], 3) for p in (50, 90, 99)},
        "cut_off_by_kills_and_sent_again": tally.cut_off,
        "refused_and_sent_again": tally.refused,
        "lost": tally.lost,
        "resident_mib": {
            "second_third": statistics.median(second) / 2**20,
            "last_third": statistics.median(last) / 2**20,
        },
        "memory_ratio": round(statistics.median(last) / statistics.median(second), 4),
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=15.0, help="at least so long (default 15)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="also write the figures, as json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(pathlib.Path(folder))
        server.start()
        try:
            report = asyncio.run(run(arguments, server))
        finally:
            server.kill()
    print(json.dumps(report, indent=2))
    if arguments.out:
        write_json(arguments.out, report)
    sys.exit(bool(report["lost"]))


if __name__ == "__main__":
    main()
