"""The data set on the disk: ten wordings of each fact to train on, one for validation, one for the test.

    out/train.jsonl, validation.jsonl, test.jsonl    {"input": question, "target": answer, "fact": id} a line
    out/questions.json                               counts, extractor, seed, hashes, every fact with its id

Which wording goes where is drawn for each fact alone, from the seed and the fact's id (Strangmann et al., arXiv
2411.01195: 10, 1 and 1 of 12): a further text changes nothing about the facts of the others. No question stands
twice in a data set, whichever the file. A fact that shares a question with an earlier one is therefore left out, and
counted: asked the same, the two could not be told apart.

>>> generate([Text("towns", "Paris is the capital of France.")], Rules(), "towns")["pairs"]
{'train': 10, 'validation': 1, 'test': 1}
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from hyperflax.errors import DataError
from hyperflax.files import atomic_directory
from hyperflax.json_files import write_json
from hyperflax.tuner.questions.facts import PAIRS_PER_FACT, Extractor, Fact, Pair, Text, digest, require_pairs

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
QUESTIONS, FORMAT, SCHEMA_VERSION = "questions.json", "hyperflax-questions", 1
SHOWN = 5  # unread sentences of a text that are told; `questions.json` has them all


def generate(
    texts: Sequence[Text],
    extractor: Extractor,
    out: pathlib.Path | str,
    seed: int = 0,
    limit: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = False,
) -> dict[str, Any]:
    """Writes a data set; the folder appears whole or not at all.

    Args:
      texts: at least one; a fact that several of them state is asked for once.
      extractor: reads the facts and words the questions.
      out: a folder that does not exist or is empty; whether it is, is looked at before the first question is asked.
      seed: of the split and of the facts that are drawn, not negative.
      limit: of facts, drawn among those that were read; by default all are taken.
      say: is told what was not read and what was left out.
      progress: show a progress bar over the facts.

    Returns:
      what stands in `questions.json`.

    Raises:
      DataError: no text, no fact in any of them, a limit below 1, or an extractor that breaks its promise.
      CheckpointError: `out` holds something.
    """
    if not texts or seed < 0:
        raise DataError(f"questions: expected at least one text and a seed from 0, got {len(texts)} and {seed}")
    if limit is not None and limit < 1:
        raise DataError(f"questions: expected a limit of at least one fact, got {limit}")
    with atomic_directory(out) as folder:
        facts, read = _read(texts, extractor, say)
        if limit is not None:
            names, drawn = list(facts), np.random.default_rng(seed).permutation(len(facts))[:limit]
            facts = {names[place]: facts[names[place]] for place in sorted(drawn)}
        kept, pairs, left_out = {}, {split: [] for split in SPLITS}, []
        asked: dict[str, str] = {}
        for fact_id, (fact, sources) in tqdm(facts.items(), unit="fact", disable=not progress):
            found = require_pairs(extractor.pairs(fact), fact)
            if clash := [pair for pair in found if pair.key in asked]:
                left_out.append(fact.statement)
                say(f"left out, asks as an earlier fact does ({clash[0].question}): {fact.statement}")
                continue
            asked |= dict.fromkeys((pair.key for pair in found), fact_id)
            kept[fact_id] = {"statement": fact.statement, "sources": sources}
            for split, pair in zip(assign(fact_id, seed), found, strict=True):
                pairs[split].append(pair)
        require_disjoint(pairs)
        report = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "extractor": extractor.describe(),
            "seed": seed,
            "texts": read,
            "pairs": {split: len(pairs[split]) for split in SPLITS},
            "left_out": left_out,
            "sha256": {split: _write(folder / f"{split}.jsonl", pairs[split]) for split in SPLITS},
            "facts": kept,
        }
        write_json(folder / QUESTIONS, report)
    return report


def assign(fact_id: str, seed: int) -> list[str]:
    """Returns the split of each of a fact's twelve wordings: one for validation, one for the test, the rest to train.

    >>> assign("0123456789ab", seed=0).count("train")
    10
    """
    splits = [TRAIN] * PAIRS_PER_FACT
    validation, test = np.random.default_rng([seed, int(fact_id, 16)]).permutation(PAIRS_PER_FACT)[:2]
    splits[validation], splits[test] = VALIDATION, TEST
    return splits


def require_disjoint(pairs: Mapping[str, Iterable[Pair]]) -> None:
    """Raises DataError if two questions of a data set, in one split or two, are the same after normalisation."""
    seen: dict[str, str] = {}
    for split, members in pairs.items():
        for pair in members:
            if pair.key in seen:
                raise DataError(f"{split}: the question {pair.question!r} stands in {seen[pair.key]}, too")
            seen[pair.key] = split


def _read(
    texts: Sequence[Text], extractor: Extractor, say: Callable[[str], None]
) -> tuple[dict[str, tuple[Fact, list[str]]], list[dict[str, Any]]]:
    """Returns the facts by id, each once and with the names of all texts that state it; and what is told of a text."""
    facts: dict[str, tuple[Fact, list[str]]] = {}
    read: list[dict[str, Any]] = []
    for text in texts:
        extraction = extractor.facts(text)
        for fact in extraction.facts:
            _, sources = facts.setdefault(fact.id, (fact, []))
            if text.name not in sources:
                sources.append(text.name)
        say(f"{text.name}: {len(extraction.facts)} facts, {len(extraction.unread)} sentences not read")
        for sentence in extraction.unread[:SHOWN]:
            say(f"  not read: {sentence[:100]}")
        counts: dict[str, Any] = {"facts": len(extraction.facts), "unread": list(extraction.unread)}
        read.append({"name": text.name, "sha256": text.sha256, **counts})
    if not facts:
        unread = sum(len(row["unread"]) for row in read)
        raise DataError(f"{', '.join(text.name for text in texts)}: no fact was read ({unread} sentences were not)")
    return facts, read


def _write(path: pathlib.Path, pairs: Sequence[Pair]) -> str:
    """Writes a file of examples and returns its hash."""
    rows = ({"input": pair.question, "target": pair.answer, "fact": pair.fact} for pair in pairs)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")
    return digest(text)
