"""Compiled programs are kept on disk: what one command compiled, the next one reads.

JAX has had such a cache for long and leaves it off. A command that answers in seconds spends most of them compiling the
same programs as yesterday: `hyperflax adapt` took 8.4 s of CPU time the first time and 3.3 s the second.

They lie in `$XDG_CACHE_HOME/hyperflax/jax`, by default `~/.cache/hyperflax/jax`, and may be deleted at any time. Where
they take more than 2 GiB, the next command deletes the oldest. (JAX can do so itself, with a lock, a second file for
each program and a write for each reading; and once a process has died between two files, it keeps nothing any more.)
`JAX_COMPILATION_CACHE_DIR` puts them elsewhere, `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.

>>> keep_compiled_programs()    # once, before anything is compiled
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys

MOST = 2 << 30  # bytes of all of them; of more, the newest half as much is kept
WORTH_KEEPING = 0.1  # seconds of compiling; reading a program takes a few milliseconds


def keep_compiled_programs() -> None:
    """Turns JAX's compilation cache on, for this process and those it starts; what the user has set stays as it is."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = pathlib.Path(home) / "hyperflax" / "jax"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        with contextlib.suppress(OSError):  # JAX warns of a folder that it cannot use, and compiles
            prune(folder, MOST)
    least = os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(WORTH_KEEPING))
    if jax := sys.modules.get("jax"):  # it has read its environment: `python -m hyperflax.train` imports it on the way
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float(least))


def prune(folder: pathlib.Path, most: int) -> None:
    """Deletes the oldest files of a folder that holds more than `most` bytes, until it holds half of them."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another command deletes as well
                if entry.is_file(follow_symlinks=False):  # XLA keeps a folder of its own there on GPUs
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    if total <= most:
        return
    for _, size, path in sorted(found):
        if total <= most // 2:
            return
        pathlib.Path(path).unlink(missing_ok=True)
        total -= size
