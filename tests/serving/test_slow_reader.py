"""A caller who opens a stream and reads nothing is cut off at his deadline; real sockets."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import pathlib
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest

from hyperflax.cli import serve
from hyperflax.serving.service import Answer, Service
from tests.evaluation.micro import hypermodel

MUCH = "x" * 2**20  # characters of every answer: more than the sockets of this machine take at once

WHOLE = b"\r\n0\r\n\r\n"  # with which HTTP/1.1 ends an answer of parts


class Predictions:
    """In the place of `Service.predict`: answers without end, and whether they have been closed."""

    def __init__(self) -> None:
        self.made, self.closed = 0, threading.Event()

    async def __call__(self, *_: Any, **__: Any) -> AsyncGenerator[list[Answer], None]:
        try:
            while True:
                self.made += 1
                await asyncio.sleep(0.001)
                yield [Answer(f"{self.made} {MUCH}", False, 0.0)]
        finally:
            self.closed.set()


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[tuple[Service, Any]]:
    """The service and its server, on a free port, with nothing compiled."""
    hypermodel().save(folder / "model")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    arguments = ["--model", str(folder / "model"), "--port", "0", "--adapters", str(folder / "adapters")]
    service, server = serve.build_server(parser.parse_args([*arguments, "--grace", "5"]))
    service.engine.compile = lambda: None
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait(lambda: server.started)
        yield service, server
    finally:
        server.should_exit = True
        thread.join()
        assert service.stop()


def wait(until: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def ask(server: Any, seconds: float) -> socket.socket:
    """Asks for a stream, of which the connection takes little at once."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.connect(("127.0.0.1", server.servers[0].sockets[0].getsockname()[1]))
    body = json.dumps({"inputs": ["a"], "stream": True, "seconds": seconds}).encode()
    head = "POST /v1/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    caller.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return caller


def read(caller: socket.socket) -> bytes:
    """All that comes until the other side ends it."""
    return b"".join(iter(lambda: caller.recv(2**20), b""))


def test_a_caller_who_reads_nothing_is_cut_off(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LINGER", 0.5)
    with served(tmp_path) as (service, server):
        predictions = service.predict = Predictions()
        began = time.monotonic()
        with ask(server, seconds=2) as caller:
            wait(lambda: predictions.made > 1)
            made = -1
            while made < predictions.made:  # until what is sent waits for the caller
                made = predictions.made
                time.sleep(0.3)
            assert not predictions.closed.is_set()
            assert predictions.closed.wait(30)
            assert time.monotonic() - began >= 2
            # The connection goes, too, though what was written for it cannot be sent.
            wait(lambda: not server.server_state.connections)
            assert not read(caller).endswith(WHOLE)


def test_one_who_reads_slowly_is_told_of_his_deadline(tmp_path: pathlib.Path) -> None:
    with served(tmp_path) as (service, server):
        service.predict = Predictions()
        with ask(server, seconds=1) as caller:
            found = read(caller)
        assert b'{"error": "no answer within 1 s"}' in found[-200:]
        assert found.endswith(WHOLE)
