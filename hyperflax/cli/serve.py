"""`hyperflax serve`: a hypermodel as an HTTP service."""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hyperflax.cli.models import add_model_argument

if TYPE_CHECKING:
    import uvicorn

    from hyperflax.serving.service import Service

DESCRIPTION = """Serve a hypermodel over HTTP: POST examples and get an adapter, POST inputs and get predictions.

  hyperflax serve --model strings
  curl -s localhost:8765/v1/adapters -H 'Content-Type: application/json' -d '{"examples": [
    {"input": "ada lovelace", "target": "Lovelace, A."}, {"input": "alan turing", "target": "Turing, A."}]}'
  curl -s localhost:8765/v1/predictions -H 'Content-Type: application/json' \\
    -d '{"inputs": ["grace hopper"], "adapter": "ID"}'

http://localhost:8765/ is a page to try it in a browser, /openapi.json the schema, /metrics figures for Prometheus.
Callers of all adapters are decoded together in one batch. Adapters are kept in --adapters and outlive the service.
Needs: pip install 'hyperflax[serve]'

It listens on this machine alone. On another --host it asks for a token, which callers send as
"Authorization: Bearer TOKEN", in UTF-8: put it into the environment variable HYPERFLAX_TOKEN.
"""

TOKEN = "HYPERFLAX_TOKEN"
CONNECTIONS = 4096  # at once; one more is answered with 503
LINGER = 10.0  # seconds
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--host", default=LOOPBACK[0], help=f"address to listen on (default {LOOPBACK[0]})")
    parser.add_argument("--port", type=int, default=8765, help="port (default 8765; 0 takes a free one)")
    parser.add_argument(
        "--adapters", type=pathlib.Path, default=pathlib.Path("adapters"), metavar="DIR", help="default ./adapters"
    )
    parser.add_argument(
        "--rows", type=int, default=16, help="inputs decoded at once, for each of up to three lengths (16)"
    )
    parser.add_argument("--resident", type=int, default=64, help="adapters on the device at once (64)")
    parser.add_argument("--hosted", type=int, default=1024, help="adapters in host memory at once (1024)")
    parser.add_argument(
        "--waiting", type=int, default=1024, help="inputs, and callers for adapters, that may wait, above it 429 (1024)"
    )
    parser.add_argument("--max_adapters", type=int, default=100_000, metavar="N", help="on disk, above it 507 (100000)")
    parser.add_argument("--grace", type=int, default=30, metavar="SECONDS", help="time to end in, in all (30)")


def build_server(arguments: argparse.Namespace) -> tuple[Service, uvicorn.Server]:
    """Returns the service and a server for it, neither of them started.

    Raises:
      ConfigError: a port that there is not, no token where one is needed, one that no header can hold, or sizes that
        cannot work.
      CheckpointError: the folder of adapters cannot be made, or may not be read and written in.
      MissingExtraError: what a server needs is not installed.
    """
    from hyperflax.errors import ConfigError, MissingExtraError

    try:
        import uvicorn

        from hyperflax.serving.http import create_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error
    from hyperflax.hypermodel import load
    from hyperflax.serving.bounds import ServiceConfig
    from hyperflax.serving.service import Service

    token = os.environ.get(TOKEN, "").strip() or None  # no header holds the line's end that a file's content has
    local = arguments.host in LOOPBACK
    if not local and token is None:
        raise ConfigError(f"--host {arguments.host}: expected a token in the environment variable {TOKEN}")
    # Of bytes that are no UTF-8 the environment makes characters that are not printable either. The token is not told.
    if wrong := [number for number, letter in enumerate(token or "", 1) if not letter.isprintable()]:
        raise ConfigError(f"{TOKEN}: expected printable text in UTF-8, got something else as its character {wrong[0]}")
    if not 0 <= arguments.port <= 65535:
        raise ConfigError(f"--port: expected 0 to 65535, got {arguments.port}")
    config = ServiceConfig(
        rows=arguments.rows,
        resident=arguments.resident,
        hosted=arguments.hosted,
        waiting=arguments.waiting,
        kept=arguments.max_adapters,
    )

    class Server(uvicorn.Server):
        """One whose callers and whose service have the same time to end in, not one after the other."""

        end = 0.0  # where it never came to serve, there is nothing to wait for

        async def shutdown(self, sockets: Any = None) -> None:
            self.end = time.monotonic() + arguments.grace
            await super().shutdown(sockets)

        async def on_tick(self, counter: int) -> bool:
            if counter % 10 == 0:  # once a second
                linger.look(connection.transport for connection in self.server_state.connections)
            return await super().on_tick(counter)

    def left() -> float:
        return max(0.0, server.end - time.monotonic())

    linger = Linger()
    service = Service(load(arguments.model), arguments.adapters, config)
    app = create_app(service, token=token, hosts=LOOPBACK if local else ("*",), grace=left)
    server = Server(
        uvicorn.Config(
            app,
            host=arguments.host,
            port=arguments.port,
            lifespan="on",  # a service that does not start is no server without one
            timeout_graceful_shutdown=arguments.grace,
            access_log=False,
            limit_concurrency=CONNECTIONS,
        )
    )
    return service, server


class Linger:
    """Ends connections that are closing and whose callers take nothing of what is left for them.

    A transport that is closed goes only when all that was written has been sent; who does not read would keep it, and
    its place among `CONNECTIONS`, for ever.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[int, float]] = {}  # what was left for each, and since when it is no less

    def look(self, transports: Iterable[Any]) -> None:
        """Aborts those of which nothing has been taken for `LINGER` seconds; to be called again and again."""
        now, before, self._seen = time.monotonic(), self._seen, {}
        for transport in list(transports):
            if transport.is_closing():
                left = transport.get_write_buffer_size()
                was, since = before.get(transport, (left + 1, now))
                if left == was and now - since > LINGER:
                    transport.abort()
                else:
                    self._seen[transport] = left, since if left == was else now


def run(arguments: argparse.Namespace) -> int:
    service, server = build_server(arguments)
    code = 0
    try:
        server.run()
    except SystemExit:  # it cannot start or listen there, and has said why; uvicorn's own code is another one's here
        code = 2
    except KeyboardInterrupt:  # it has been told to end, and has ended
        pass
    if not service.stop(0):
        # What still runs can be broken off in no other way; its files appear when they are whole, or not at all.
        os._exit(code)
    return code
