"""The memory of a process that computes on its CPU: freed memory is kept for the next step.

A compiled step takes its temporaries, hundreds of megabytes, from malloc and gives them back. The C library of Linux
hands so large a block back to the system at once, and every step pays for new pages: on a small T5 half a million page
faults in twelve steps, and 1.6 s of system time beside 4.4 s of computing. With one arena and high thresholds that
became 40 thousand and 0.3 s (`python benchmarks/host_memory.py`). The process's resident memory stays at its peak.

>>> keep_freed_memory()    # once, before the first computation
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Asks glibc's malloc to keep what is freed; returns whether it agreed.

    Elsewhere (another C library or system, an accelerator's memory) nothing changes. What the user sets by an
    environment variable of malloc stays as it is.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST), (_M_TOP_PAD, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)
