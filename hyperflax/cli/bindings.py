"""T5X's `--gin.NAME=VALUE` flags, taken out of the command line before argparse sees it."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from hyperflax.errors import ConfigError

_OPENINGS = tuple("'\"@%([{")


def split_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--gin.NAME=VALUE` flags from the rest and turns them into gin bindings, `NAME = VALUE`.

    What gin reads as a value of its own stays as it is; anything else, such as a path, is taken as a string.

    >>> split_bindings(["--gin_file=f.gin", "--gin.STEPS=3", "--gin.MODEL_DIR=./runs/a"])
    (['--gin_file=f.gin'], ['STEPS = 3', "MODEL_DIR = './runs/a'"])

    Raises:
      ConfigError: a flag without a name or a value, or with `false` or `true`, which as strings would both be true.
    """
    rest, bindings = [], []
    for argument in argv:
        if not argument.startswith("--gin."):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals or not name:
            raise ConfigError(f"{argument}: expected --gin.NAME=VALUE")
        if value != (meant := value.capitalize()) and meant in ("False", "True"):
            raise ConfigError(f"{argument}: expected {meant}, or quotes around a string")
        bindings.append(f"{name} = {value if _is_gins(value) else repr(value)}")
    return rest, bindings


def _is_gins(value: str) -> bool:
    """Whether gin is to read it: a literal, or what begins as one or as a reference, so that gin says what is wrong."""
    if value.lstrip().startswith(_OPENINGS):
        return True
    try:
        ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return False
    return True
