"""One POST of json, with one deadline and one size limit, whatever the server does.

The standard library is enough for it, so the core install can use endpoints: what is asked for is a single request
without a session. Of what an HTTP library would add, redirects must not be followed (a key would go to wherever the
server says), and bodies must not be unpacked. A deadline for the whole call, name look-up and trickling bytes included,
would have to be written beside httpx and requests too: their time-outs are for each read.

>>> post_json("http://127.0.0.1:8000/v1/chat/completions", {"model": "m"}, {}, timeout=60, limit=2**20).status
200
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

from hyperflax.errors import ConfigError, HyperflaxError


class NoAnswerError(HyperflaxError):
    """No connection, no answer in time, or one that is too long or not HTTP."""


class Answer(NamedTuple):
    """What a server sent: the status, the body, and how many seconds to wait if it says so."""

    status: int
    body: bytes
    retry_after: float | None = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def post_json(url: str, value: Any, headers: Mapping[str, str], *, timeout: float, limit: int) -> Answer:
    """Posts json and returns the answer, whatever its status; a redirect is an answer, too.

    Args:
      url: see `check_url`.
      value: json-ready.
      headers: further ones, such as a key; they stand in no error.
      timeout: seconds for the whole call.
      limit: most bytes of a body.

    Raises:
      NoAnswerError: as it says.
    """
    request = urllib.request.Request(
        url,
        data=json.dumps(value).encode(),
        headers={"Content-Type": "application/json", "Accept": "application/json", **headers},
        method="POST",
    )
    done: queue.Queue[Answer | NoAnswerError] = queue.Queue(maxsize=1)

    def work() -> None:
        try:
            done.put(_post(request, timeout, limit))
        except NoAnswerError as error:
            done.put(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            done.put(NoAnswerError(f"{url}: expected an answer, got {type(error).__name__} ({str(reason)[:200]})"))

    # A thread, for a socket's time-out starts anew with every byte. It dies of that time-out, or with the process.
    threading.Thread(target=work, name="post", daemon=True).start()
    try:
        result = done.get(timeout=timeout)
    except queue.Empty:
        raise NoAnswerError(f"{url}: expected an answer within {timeout:g} seconds, got none") from None
    if isinstance(result, NoAnswerError):
        raise result
    return result


def _post(request: urllib.request.Request, timeout: float, limit: int) -> Answer:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if is_this_machine(request.host):
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy elsewhere cannot reach it, and would see the key
    try:
        response = urllib.request.build_opener(*handlers).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        body = response.read(limit + 1)
        if len(body) > limit:
            raise NoAnswerError(f"{request.full_url}: expected at most {limit:,} bytes, got more")
        return Answer(response.code, body, _seconds(response.headers.get("Retry-After")))


def _seconds(text: str | None) -> float | None:
    """The header's seconds; its other form, a date, is left alone."""
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None


def is_this_machine(host: str) -> bool:
    """Whether `host`, perhaps with a port, is a loopback address or `localhost`."""
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def check_url(url: str, has_key: bool) -> None:
    """Raises ConfigError unless `url` is http(s) with a host and nothing secret in it, and fit to carry a key."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        parts, good = urllib.parse.urlsplit(""), False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"endpoint: expected a URL such as http://localhost:8000/v1, got {url[:80]!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError("endpoint: expected a URL without user, query and fragment; a key comes from a variable")
    if has_key and parts.scheme == "http" and not is_this_machine(parts.netloc):
        raise ConfigError(f"endpoint: expected https for a key, got http to {parts.hostname}")
