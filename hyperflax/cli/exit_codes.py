"""How a command ends.

0    done
2    an error that hyperflax raised on purpose, what the operating system refused (a full disk, a folder that may not be
     written), or an argument that is not known: trying again does not help
3    `hyperflax compile`: the program does not fit the chip
75   SIGTERM stopped a training run, which is saved: the same command goes on (`RESUME_EXIT_CODE`)
130  interrupted by Ctrl-C; a training run is saved before, unless it comes twice
141  who was to read what it prints has closed the pipe, as `head` does: nothing is told
143  SIGTERM ended a command that has nothing to save, or that had not begun to train
1    a defect, with its traceback
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hyperflax.errors import HyperflaxError


def exit_code(command: str, run: Callable[[], int | None]) -> int:
    """Runs a command; an error on purpose or of the system becomes one line on stderr, a defect keeps its traceback."""
    try:
        code = run() or 0
        _flush()  # what the system says of it is told here, and is the command's own failure
        return code
    except HyperflaxError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _settle_output()
        return 141
    except OSError as error:
        # Without a number a library has raised it, and the operating system has said nothing; gin's own form of an
        # error has lost it, and keeps the text.
        if error.errno is None and not str(error).startswith("[Errno "):
            raise
        _settle_output()
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130


def _flush() -> None:
    print(end="", flush=True)  # who was started with stdout closed has none


def _settle_output() -> None:
    """Writes what is left of the output, or drops it: the interpreter would complain once more, and end with 120."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
