"""All operations of the language by name.

Fifty-odd small pure functions in six families, written in `selecting` (select), `arranging` (reorder, join), `dressing`
(recase, add) and `reformatting` (reformat).

>>> OPERATIONS["word"].apply("Ada King Lovelace", 2)
'King'
"""

from __future__ import annotations

from . import arranging, dressing, reformatting, selecting
from .operation import FAMILIES, Operation

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for room in (selecting, arranging, dressing, reformatting)
    for operation in room.OPERATIONS
}

__all__ = ["FAMILIES", "OPERATIONS", "Operation"]
