"""The embedded extractor: reads sentences of the grammar in `relations/`, without a model and without a network.

A text is plain prose, UTF-8. A sentence ends with a full stop, an exclamation or a question mark before
a space and no small letter (so "St. Louis" is cut in two), or at a blank line. The first relation with a shape like the
sentence reads it. A sentence that none reads is returned as unread: the extractor says so rather than guess.

>>> Rules().facts(Text("towns", "Paris is the capital of France. It is old.")).unread
('It is old.',)
>>> Rules().pairs(Fact("Io orbits Jupiter.", "moons"))[0][:2]
('What does Io orbit?', 'Jupiter')
"""

from __future__ import annotations

from typing import Any

from hyperflax.errors import DataError
from hyperflax.tuner.questions.facts import Extraction, Fact, Pair, Text, digest, sentences
from hyperflax.tuner.questions.relation import VALUE, Relation
from hyperflax.tuner.questions.relations import RELATIONS


class Rules:
    """An `Extractor` by rules.

    Attributes:
      relations: the grammar; the first that reads a sentence has it.
    """

    def __init__(self, relations: tuple[Relation, ...] = RELATIONS):
        self.relations = relations

    def describe(self) -> dict[str, Any]:
        grammar = "\n".join(line for relation in self.relations for line in (*relation.says, *relation.asks))
        return {"name": "rules", "relations": len(self.relations), "sha256": digest(grammar)}

    def facts(self, text: Text) -> Extraction:
        facts, unread = [], []
        for sentence in sentences(text.content):
            if self.read(sentence):
                facts.append(Fact(sentence, text.name))
            else:
                unread.append(sentence)
        return Extraction(tuple(facts), tuple(unread))

    def pairs(self, fact: Fact) -> tuple[Pair, ...]:
        """Returns twelve pairs of one answer.

        Raises:
          DataError: a statement that no rule reads.
        """
        read = self.read(fact.statement)
        if read is None:
            raise DataError(f"fact '{fact.statement[:60]}': expected a sentence of the grammar, no rule reads it")
        relation, slots = read
        return tuple(Pair(question, slots[VALUE], fact.id) for question in relation.questions(slots))

    def read(self, sentence: str) -> tuple[Relation, dict[str, str]] | None:
        """Returns the first relation that reads a sentence, and its slots; None if there is none."""
        if not sentence.endswith("."):
            return None  # a question, a call or a heading states nothing
        for relation in self.relations:
            slots = relation.read(sentence[:-1])
            if slots is not None:
                return relation, slots
        return None
