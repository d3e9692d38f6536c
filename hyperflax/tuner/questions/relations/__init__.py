"""The grammar: every relation that a rule reads, in the order in which they are tried.

One file per field; `general.py` comes last, for its shapes are like many sentences.

>>> len({relation.name for relation in RELATIONS}) == len(RELATIONS)
True
"""

from hyperflax.tuner.questions.relations import general, life, matter, places, sky, works

RELATIONS = (
    *places.RELATIONS,
    *sky.RELATIONS,
    *matter.RELATIONS,
    *life.RELATIONS,
    *works.RELATIONS,
    *general.RELATIONS,
)

__all__ = ["RELATIONS"]
