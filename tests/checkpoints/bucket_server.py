"""A folder served as a bucket, over the two calls of Google's JSON API with which TensorStore lists and reads objects.

https://cloud.google.com/storage/docs/json_api/v1/objects: `list` in pages, `get` with `alt=media` and byte ranges.
Every call is kept in `requests`. TensorStore finds it by TENSORSTORE_GCS_HTTP_URL.

>>> with serve(folder) as server:
...     subprocess.run(command, env={**os.environ, **server.environment})      # gs://bucket/... is folder/...
"""

from __future__ import annotations

import contextlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator

PAGE = 5


class Server(http.server.ThreadingHTTPServer):
    """Serves `folder` as the bucket named `bucket`."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        return {
            "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{self.server_port}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",  # else it asks the network for credentials first
            "no_proxy": "127.0.0.1",
        }

    def names(self) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.server.requests.append(urllib.parse.unquote(url.path))
        match = re.fullmatch(r"/storage/v1/b/bucket/o(?:/(.+))?", url.path)
        if match is None:
            self._answer(404, b"no such bucket")
        elif match[1] is None:
            self._list(query)
        else:
            self._get(urllib.parse.unquote(match[1]))

    def _list(self, query: dict[str, str]) -> None:
        names = [
            name
            for name in self.server.names()
            if name.startswith(query.get("prefix", ""))
            and name >= query.get("startOffset", "")
            and ("endOffset" not in query or name < query["endOffset"])
        ]
        start = int(query.get("pageToken", "0"))
        page = {"kind": "storage#objects", "items": [{"name": name} for name in names[start : start + PAGE]]}
        if start + PAGE < len(names):
            page["nextPageToken"] = str(start + PAGE)
        self._answer(200, json.dumps(page).encode(), {"Content-Type": "application/json"})

    def _get(self, name: str) -> None:
        if name not in self.server.names():
            self._answer(404, b"no such object")
            return
        content = (self.server.folder / name).read_bytes()
        headers = {"x-goog-generation": "1", "x-goog-stored-content-length": str(len(content))}
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            self._answer(200, content, headers)
            return
        size = len(content)
        start = int(part[1]) if part[1] else max(0, size - int(part[2]))
        stop = min(int(part[2]) + 1 if part[1] and part[2] else size, size)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._answer(206, content[start:stop], headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serve(folder: pathlib.Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
