"""Asks `hyperflax serve` from many clients for a while, kills it on the way, and counts what was lost.

    python -m benchmarks.service [--requests 20000] [--minutes 15] [--clients 32] [--kills 3] [--adapters 64]
      [--making 0.02] [--out benchmarks/service.json]

The service is a process of its own with the model `strings`. Every client sends one request after the other: most are
one to four inputs for one of the adapters, whole or streamed; a share of `--making` are four fresh examples, a quarter
of them with an estimate, and what comes of them is asked by all clients from then on. A request that is cut off by a
kill, or refused because too much is waiting, is sent again. The kills are SIGKILL, in the first third of the minutes,
each while an adapter is asked for. After them estimates of examples of every length are asked for (`Load.warm`), since
the first of each length has refining compiled, about 100 MiB that the process keeps; then the service has settled. The
run ends when the requests are sent, the minutes have passed, and two thirds of them have since it settled.

Lost is an adapter whose id was answered and that is not there at the end, or without the estimate that it was answered
with; an answer that differs from what the same adapter and input got before, for which every adapter is asked once more
at the end; or a request that is never answered. Resident memory is read every second; the ratio is that of its means
over the second and over the first half of the time since the service settled. Adapters come all the time, but the
service holds no more than `HOSTED` in memory, as many as there are before the clock starts: memory is flat unless
something leaks. A run of seconds, too short to tell, has null for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import httpx2
import psutil
from tqdm import tqdm

from benchmarks.service_clients import Load, Tally
from hyperflax.evaluation.provenance import device
from hyperflax.json_files import write_json
from hyperflax.versions import versions

HOSTED = 64  # adapters that the service holds in memory


class Server:
    """The process, which may be killed and started again in the same folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.port = folder, 0

    def start(self) -> None:
        command = [sys.executable, "-m", "hyperflax", "serve", "--model", "strings", "--port", str(self.port)]
        command += ["--hosted", str(HOSTED)]
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


async def watch(server: Server, memory: list[tuple[float, int]]) -> None:
    """Reads the service's resident memory every second: seconds since now, bytes."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(1)
        with contextlib.suppress(psutil.Error):  # it has just been killed
            memory.append((time.monotonic() - began, server.resident))


async def kill(server: Server, load: Load, pauses: list[float]) -> None:
    """Kills the service after every pause, in seconds, and starts it again.

    Each kill comes while an adapter is asked for; unless there is none for as long again.
    """
    for pause in pauses:
        await asyncio.sleep(pause)
        end = time.monotonic() + pause
        while not load.making and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)


async def run(arguments: argparse.Namespace, server: Server) -> dict[str, Any]:
    load = Load(lambda: server.port)
    limits = httpx2.Limits(max_connections=arguments.clients)
    async with httpx2.AsyncClient(timeout=300, limits=limits) as http:
        with tqdm(total=arguments.adapters, unit="adapter", desc="adapters") as bar:
            while len(load.known) < arguments.adapters:
                await load.make(http, False)
                bar.update(len(load.known) - bar.n)
        load.tally = Tally(lost=load.tally.lost)
        began, least = time.monotonic(), 60 * arguments.minutes
        watching = asyncio.ensure_future(watch(server, load.tally.memory))
        settled = math.inf

        async def disturb() -> None:
            nonlocal settled
            await kill(server, load, [least / 3 / (arguments.kills + 1)] * arguments.kills)
            await load.warm(http)
            settled = time.monotonic() - began

        disturbing = asyncio.ensure_future(disturb())

        def goes_on() -> bool:
            if disturbing.done():
                disturbing.result()  # or nobody would ever hear of what went wrong
            end = max(least, settled + 2 / 3 * least)
            return load.tally.answered < arguments.requests or time.monotonic() - began < end

        with tqdm(total=arguments.requests, unit="request") as bar:
            await asyncio.gather(
                *(load.client(http, n, arguments.making, goes_on, bar) for n in range(arguments.clients))
            )
        seconds = time.monotonic() - began
        watching.cancel()
        report = figures(load.tally, seconds, settled, arguments)
        await load.check(http)
    return report | {"lost": load.tally.lost}


def figures(tally: Tally, seconds: float, settled: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """The report on so many seconds, before the last of which the service had settled."""
    middle = (settled + seconds) / 2
    first = mean_mib([size for at, size in tally.memory if settled <= at < middle])
    second = mean_mib([size for at, size in tally.memory if middle <= at < seconds])
    minutes = itertools.groupby(tally.memory, lambda sample: sample[0] // 60)
    made = sum(len(tally.seconds.get(name, ())) for name in ("adapters", "adapters with an estimate"))
    return {
        "command": shlex.join(["python", "-m", "benchmarks.service", *sys.argv[1:]]),
        "device": device(),
        "clients": arguments.clients,
        "adapters": arguments.adapters,
        "kills": arguments.kills,
        "making": arguments.making,
        "seconds": round(seconds, 1),
        "requests": tally.answered + made,
        "requests_per_second": round((tally.answered + made) / seconds, 2),
        "inputs": tally.inputs,
        "adapters_made": made,
        "latency_seconds": {name: quantiles(found) for name, found in sorted(tally.seconds.items())},
        "cut_off_by_kills_and_sent_again": dict(sorted(tally.cut_off.items())),
        "refused_and_sent_again": dict(sorted(tally.refused.items())),
        "lost": tally.lost,
        "resident_mib": {
            "settled_after_seconds": round(settled, 1),
            "first_half_since": first,
            "second_half_since": second,
            "by_minute": [mean_mib([size for _, size in found]) for _, found in minutes],
        },
        "memory_ratio": round(second / first, 4) if first and second else None,
        "versions": versions(),
    }


def mean_mib(sizes: list[int]) -> float | None:
    """Of sizes in bytes; None where there are none. A median would not move with a step beside the middle."""
    return round(statistics.fmean(sizes) / 2**20, 1) if sizes else None


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Of times, by name; the largest as well."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    return {f"p{p}": round(cuts[p - 1], 3) for p in (50, 90, 99)} | {"max": round(max(seconds), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=15.0, help="see above (default 15)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--making", type=float, default=0.02, help="share of requests for a new adapter (default 0.02)")
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
