"""T5X's `--gin.NAME=VALUE` flags, taken out of the command line before argparse sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hyperflax.errors import ConfigError

# What gin reads as a value of its own; anything else after `--gin.X=` is taken as a string.
_GIN_VALUE = re.compile(r"""^\s*(['"@%\[({]|[-+]?[\d.]|True$|False$|None$)""")


def split_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--gin.NAME=VALUE` flags from the rest and turns them into gin bindings.

    >>> split_bindings(["--gin_file=f.gin", "--gin.STEPS=3", "--gin.MODEL_DIR=runs/a"])
    (['--gin_file=f.gin'], ['STEPS = 3', "MODEL_DIR = 'runs/a'"])
    """
    rest, bindings = [], []
    for argument in argv:
        if not argument.startswith("--gin."):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals or not name:
            raise ConfigError(f"{argument}: expected --gin.NAME=VALUE")
        bindings.append(f"{name} = {value if _GIN_VALUE.match(value) else repr(value)}")
    return rest, bindings
