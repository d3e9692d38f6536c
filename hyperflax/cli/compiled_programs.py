"""Compiled programs are kept on disk: what one command compiled, the next one reads.

JAX has had such a cache for long and leaves it off. A command that answers in seconds spends most of them compiling the
same programs as yesterday: `hyperflax adapt` took 8.4 s of CPU time the first time and 3.3 s the second.

They lie in `$XDG_CACHE_HOME/hyperflax/jax`, by default `~/.cache/hyperflax/jax`, take up to 2 GiB, of which those go
first that were used longest ago, and may be deleted at any time.
`JAX_COMPILATION_CACHE_DIR` puts them elsewhere, `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.

>>> keep_compiled_programs()    # once, before JAX is imported
"""

from __future__ import annotations

import os
import pathlib

MOST = 2 << 30  # bytes of all of them
WORTH_KEEPING = 0.1  # seconds of compiling; reading a program takes a few milliseconds


def keep_compiled_programs() -> None:
    """Turns JAX's compilation cache on, by its environment variables; what the user has set stays as it is."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # A folder of the user's stays without bounds: JAX cannot tell the age of what was put there without.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(home) / "hyperflax" / "jax")
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MOST))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(WORTH_KEEPING))
