"""A chat-completions endpoint on this machine, which answers as a test tells it to."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

Request = dict[str, Any]


def body(content: str) -> bytes:
    """What a server sends around a model's text."""
    return json.dumps(
        {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
    ).encode()


def good(request: Request) -> bytes:
    """Facts: the sentences of the text. Pairs: twelve questions that name the fact."""
    prompt, text = (message["content"] for message in request["messages"][:2])
    if '"facts"' in prompt:
        return body(json.dumps({"facts": re.findall(r"[^.]+\.", text)}))
    return body(json.dumps({"pairs": [{"question": f"{n}: {text}?", "answer": text.split()[-1]} for n in range(12)]}))


class StandIn:
    """What the server has been asked, and the answers that it gives first; after them it answers well.

    An answer is (status, headers, body), or a function of the handler that writes what it likes.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answers: list[Any] = []
        self.well: Callable[[Request], bytes] = good
        self.url = ""

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append(request)
        self.headers.append(dict(handler.headers))
        self.paths.append(handler.path)
        answer = self.answers.pop(0) if self.answers else (200, {}, self.well(request))
        if callable(answer):
            answer(handler)
            return
        status, headers, data = answer
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


@contextlib.contextmanager
def running() -> Iterator[StandIn]:
    """Runs a stand-in on a free port until the block is left."""
    stand_in = StandIn()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            # A client that has given up leaves a broken connection: that is its right.
            with contextlib.suppress(ConnectionError):
                stand_in.answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
