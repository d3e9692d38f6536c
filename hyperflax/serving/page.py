"""The page at `/`: one file, and the headers that hold it to what it is.

Its Content-Security-Policy lets run what stands in the file, by hash, and nothing else: text of users or of models that
looks like a script stays text, a script of another site is not loaded, and the page talks to its own service alone.

>>> body, headers = load_page()
"""

from __future__ import annotations

import base64
import functools
import hashlib
import pathlib
import re

PAGE = pathlib.Path(__file__).with_name("page.html")


@functools.cache
def load_page() -> tuple[bytes, dict[str, str]]:
    """Returns the page and its headers, read once."""
    text = PAGE.read_text("utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(text, "script"),
        "style-src": _hashes(text, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        # The browser itself refuses innerHTML and what is like it.
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return text.encode(), headers


def _hashes(text: str, tag: str) -> str:
    """The sources of a policy that allow what stands between these tags."""
    found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode() for inline in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
