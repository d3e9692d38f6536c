"""A hypermodel in use: a frozen T5, the hypernetwork that writes its adapters, and text in and out.

>>> model = hyperflax.load("strings")
>>> adapter = model.adapt([("ada lovelace", "Lovelace, A."), ("alan turing", "Turing, A.")])
>>> model.predict(["grace hopper"], adapter)
['Hopper, G.']

    config.py    `HypermodelConfig`, what a hypermodel is made of
    arrays.py    `ArrayHypermodel`, batches of tasks: supports to adapters, refining, decoding; reading and writing it
    text.py      `Hypermodel`, one task as text; what users, evaluation and serving have
    find.py      `load`, by name or directory; `shipped`, where a model that comes along lies
"""

from hyperflax.hypermodel.arrays import REFINE_LEARNING_RATE
from hyperflax.hypermodel.config import HYPERNETWORKS, HypermodelConfig
from hyperflax.hypermodel.find import find, load, shipped
from hyperflax.hypermodel.text import WINDOW, Hypermodel, TextPair

__all__ = [
    "HYPERNETWORKS",
    "REFINE_LEARNING_RATE",
    "WINDOW",
    "Hypermodel",
    "HypermodelConfig",
    "TextPair",
    "find",
    "load",
    "shipped",
]
