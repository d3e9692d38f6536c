"""`hyperflax serve`: a hypermodel as an HTTP service."""

from __future__ import annotations

import argparse
import os
import pathlib

from hyperflax.cli.models import add_model_argument

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
"Authorization: Bearer TOKEN": put it into the environment variable HYPERFLAX_TOKEN.
"""

TOKEN = "HYPERFLAX_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--host", default=LOOPBACK[0], help=f"address to listen on (default {LOOPBACK[0]})")
    parser.add_argument("--port", type=int, default=8765, help="port (default 8765; 0 takes a free one)")
    parser.add_argument(
        "--adapters", type=pathlib.Path, default=pathlib.Path("adapters"), metavar="DIR", help="default ./adapters"
    )
    parser.add_argument("--rows", type=int, default=16, help="inputs decoded at once, for each of two lengths (16)")
    parser.add_argument("--resident", type=int, default=64, help="adapters on the device at once (64)")
    parser.add_argument("--hosted", type=int, default=1024, help="adapters in host memory at once (1024)")
    parser.add_argument("--waiting", type=int, default=1024, help="inputs that may wait, above it 429 (1024)")
    parser.add_argument("--grace", type=int, default=30, metavar="SECONDS", help="time to end in (30)")


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.errors import ConfigError, MissingExtraError

    try:
        import uvicorn

        from hyperflax.serving.http import create_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error
    from hyperflax.hypermodel import load
    from hyperflax.serving.service import Service, ServiceConfig

    token = os.environ.get(TOKEN) or None
    local = arguments.host in LOOPBACK
    if not local and token is None:
        raise ConfigError(f"--host {arguments.host}: expected a token in the environment variable {TOKEN}")
    config = ServiceConfig(
        rows=arguments.rows, resident=arguments.resident, hosted=arguments.hosted, waiting=arguments.waiting
    )
    service = Service(load(arguments.model), arguments.adapters, config)
    app = create_app(service, token=token, hosts=LOOPBACK if local else ("*",), grace=arguments.grace)
    try:
        uvicorn.run(
            app, host=arguments.host, port=arguments.port, timeout_graceful_shutdown=arguments.grace, access_log=False
        )
    finally:
        if not service.stop(0):
            # What still runs can be broken off in no other way; its files appear when they are whole, or not at all.
            os._exit(0)
    return 0
