"""How a command ends: 0, 2 for an error that hyperflax raised on purpose, 130 if interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hyperflax.errors import HyperflaxError


def exit_code(command: str, run: Callable[[], int | None]) -> int:
    """Runs a command; an error on purpose becomes one line on stderr, a defect keeps its traceback."""
    try:
        return run() or 0
    except HyperflaxError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
