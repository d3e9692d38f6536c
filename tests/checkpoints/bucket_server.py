"""A folder served as a bucket, over the calls with which TensorStore lists, reads, writes and removes objects at Google
and Amazon.

https://cloud.google.com/storage/docs/json_api/v1/objects: `list` in pages, `get` with `alt=media` and byte ranges,
`insert` with `uploadType=media`, `delete`.
https://docs.aws.amazon.com/AmazonS3/latest/API: `ListObjectsV2` in pages, `GetObject` with byte ranges, `PutObject`,
`DeleteObject`.
An object has the generation, or ETag, of its time and size; a write may ask for the one that it replaces, or for none.
Every call is kept in `requests`, every write or removal with its verb in `changes`. An object of a name that `admits`
does not is not written, and its writer gets no answer. What `forbids` names, "write" or "delete", is answered with 403.
Who asks finds it by TENSORSTORE_GCS_HTTP_URL and AWS_ENDPOINT_URL.

>>> with serve(folder) as server:
...     subprocess.run(command, env={**os.environ, **server.environment})      # gs://bucket/... is folder/...
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import re
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Collection, Iterator
from xml.sax.saxutils import escape

PAGE = 20


class Server(http.server.ThreadingHTTPServer):
    """Serves `folder` as the bucket named `bucket`."""

    def __init__(self, folder: pathlib.Path, partial: pathlib.Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.partial = folder, partial
        self.requests: list[str] = []
        self.changes: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.admits: Callable[[str], bool] = lambda name: True
        self.forbids: Collection[str] = ()

    @property
    def environment(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.server_port}"
        return {
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",  # else it asks the network for credentials first
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "no_proxy": "127.0.0.1",
        }

    def handle_error(self, request: object, client_address: object) -> None:
        """Who asked may be gone."""

    def names(self, prefix: str) -> list[str]:
        folders = os.walk(self.folder / prefix.rpartition("/")[0])
        names = (
            os.path.relpath(os.path.join(folder, name), self.folder) for folder, _, files in folders for name in files
        )
        return sorted(name for name in names if name.startswith(prefix))

    def file(self, name: str) -> pathlib.Path | None:
        file = self.folder / name
        return file if file.is_file() else None


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.server.requests.append(urllib.parse.unquote(url.path))
        google = re.fullmatch(r"/storage/v1/b/bucket/o(?:/(.+))?", url.path)
        amazon = re.fullmatch(r"/bucket(?:/(.*))?", url.path)
        match = google or amazon
        if match is None:
            self._answer(404, b"no such bucket")
        elif match[1]:
            self._get(urllib.parse.unquote(match[1]))
        elif google:
            self._list_google(query)
        else:
            self._list_amazon(query)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """Google's upload."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        if url.path == "/upload/storage/v1/b/bucket/o" and query.get("uploadType") == "media":
            self._write(query["name"], expected=query.get("ifGenerationMatch"))
        else:
            self._answer(404, b"no such call")

    def do_PUT(self) -> None:
        """Amazon's upload."""
        match = re.fullmatch(r"/bucket/(.+)", urllib.parse.urlsplit(self.path).path)
        if match is None:
            self._answer(404, b"no such bucket")
            return
        expected = "0" if self.headers.get("If-None-Match") == "*" else self.headers.get("If-Match")
        self._write(urllib.parse.unquote(match[1]), expected=expected)

    def do_DELETE(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        match = re.fullmatch(r"/(?:storage/v1/b/bucket/o|bucket)/(.+)", path)
        name = urllib.parse.unquote(match[1]) if match else ""
        if "delete" in self.server.forbids:
            self._answer(403, b"not allowed")
            return
        with self.server.lock:
            self.server.changes.append(("delete", name))
            if file := self.server.file(name):
                file.unlink()
        self._answer(204, b"")

    def _write(self, name: str, expected: str | None) -> None:
        """Replaces an object when all of it is here: what breaks off leaves nothing."""
        length = int(self.headers["Content-Length"])
        content = self.rfile.read(length)
        if len(content) < length:
            return
        file = self.server.folder / name
        if not self.server.admits(name):
            return
        if "write" in self.server.forbids:
            self._answer(403, b"not allowed")
            return
        with self.server.lock:
            if expected is not None and expected.strip('"') != (_generation(file) if file.is_file() else "0"):
                self._answer(412, b"another generation")
                return
            self.server.changes.append(("write", name))
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.server.partial / str(len(self.server.changes))
            partial.write_bytes(content)
            partial.replace(file)
            generation = _generation(file)
        answer = json.dumps({"name": name, "generation": generation}).encode()
        self._answer(200, answer, {"ETag": f'"{generation}"', "Content-Type": "application/json"})

    def _list_amazon(self, query: dict[str, str]) -> None:
        names = [name for name in self.server.names(query.get("prefix", "")) if name > query.get("start-after", "")]
        start = int(query.get("continuation-token", "0"))
        page, more = names[start : start + PAGE], start + PAGE < len(names)
        told = "".join(f"<Contents><Key>{escape(name)}</Key></Contents>" for name in page)
        told += f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        if more:
            told += f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>"
        body = f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{told}</ListBucketResult>'
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _list_google(self, query: dict[str, str]) -> None:
        first, end = query.get("startOffset", ""), query.get("endOffset")
        common = os.path.commonprefix([first, end or ""])  # noqa: RUF071  # of names, character by character
        names = self.server.names(query.get("prefix", common))
        names = [name for name in names if name >= first and (end is None or name < end)]
        start = int(query.get("pageToken", "0"))
        page = {"kind": "storage#objects", "items": [{"name": name} for name in names[start : start + PAGE]]}
        if start + PAGE < len(names):
            page["nextPageToken"] = str(start + PAGE)
        self._answer(200, json.dumps(page).encode(), {"Content-Type": "application/json"})

    def _get(self, name: str) -> None:
        file = self.server.file(name)
        if file is None:
            self._answer(404, b"no such object")
            return
        content, generation = file.read_bytes(), _generation(file)
        headers = {
            "x-goog-generation": generation,
            "x-goog-stored-content-length": str(len(content)),
            "ETag": f'"{generation}"',
        }
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            self._answer(200, content, headers)
            return
        size = len(content)
        start = int(part[1]) if part[1] else max(0, size - int(part[2]))
        stop = min(int(part[2]) + 1 if part[1] and part[2] else size, size)
        if start >= stop:
            self._answer(416, b"no such range")
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._answer(206, content[start:stop], headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


def _generation(file: pathlib.Path) -> str:
    status = file.stat()
    return str(status.st_mtime_ns + status.st_size)


@contextlib.contextmanager
def serve(folder: pathlib.Path) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial, Server(folder, pathlib.Path(partial)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
