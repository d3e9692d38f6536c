"""Eight short texts of general knowledge, from which `hyperflax tune questions` makes question-answer data sets.

One file per text in `texts/`: animals, elements, materials, music, places, planets, programming, units. They are
written in the grammar of the embedded extractor (`hyperflax/tuner/questions/relations/`), one fact a sentence. All
questions and answers have at most 64 bytes, for the models that ship read bytes.

>>> names()[:2], read("planets").content[:41]
(('animals', 'elements'), 'Mercury is the first planet from the Sun.')
"""

from __future__ import annotations

import pathlib

from hyperflax.errors import DataError
from hyperflax.tuner.questions import Text, read_text

FOLDER = pathlib.Path(__file__).parent / "texts"


def names() -> tuple[str, ...]:
    """Returns the names of the texts, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def read(name: str) -> Text:
    """Returns a text.

    Raises:
      DataError: there is none of this name.
    """
    if name not in names():
        raise DataError(f"question_answer: expected a text out of {', '.join(names())}, got '{name}'")
    return read_text(FOLDER / f"{name}.txt")


def texts() -> tuple[Text, ...]:
    """Returns all eight, in the order of `names`."""
    return tuple(read(name) for name in names())
