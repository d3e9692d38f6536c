"""The embedded default data, strings: text transformation by example, as spreadsheet users know it.

>>> program = parse('email | before "@" | upper')
>>> program.run("ann.lee@web.de")
'ANN.LEE'
"""

from .handwritten import HandwrittenTask, load_handwritten
from .inputs import TYPES, pool, probes
from .operations import FAMILIES, OPERATIONS
from .programs import Program, Step, parse
from .source import make_examples
from .split import Split, load_split

__all__ = [
    "FAMILIES",
    "OPERATIONS",
    "TYPES",
    "HandwrittenTask",
    "Program",
    "Split",
    "Step",
    "load_handwritten",
    "load_split",
    "make_examples",
    "parse",
    "pool",
    "probes",
]
