"""`hyperflax tune questions`: question-answer data from texts."""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import TYPE_CHECKING

from hyperflax.cli.tune import add_seed_argument
from hyperflax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hyperflax.tuner.questions import Extractor, Text

DESCRIPTION = """Make a question-answer data set of texts: twelve questions about each fact, ten to train on, one for
validation and one for the test, which so asks for known facts in unseen words.

  hyperflax tune questions --text planets --out planets_questions
  hyperflax tune questions --text notes.txt paper.txt --out questions \\
                           --endpoint http://localhost:8000/v1 --endpoint_model MODEL
  hyperflax finetune --model MODEL --examples planets_questions/train.jsonl \\
                     --validation planets_questions/validation.jsonl --out planets_tuned

Without an endpoint, rules read sentences of a fixed grammar; those that none reads are counted and shown. With one, an
LLM reads any text; its replies are kept beside OUT, so a killed run asks nothing twice. docs/questions.md has the
grammar and the eight texts that ship.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        required=True,
        nargs="+",
        metavar="FILE",
        help="UTF-8 texts; or the names of texts that ship: animals, elements, materials, music, places, planets, "
        "programming, units",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the data set, new or empty")
    parser.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible API, such as http://localhost:8000/v1")
    parser.add_argument("--endpoint_model", metavar="NAME", help="the model there")
    parser.add_argument("--key_variable", metavar="NAME", help="environment variable that holds the endpoint's key")
    parser.add_argument(
        "--replies", metavar="DIR", help="where the endpoint's replies are kept (default: OUT.replies, beside OUT)"
    )
    parser.add_argument("--facts", type=int, metavar="N", help="how many to draw at most (default: all)")
    add_seed_argument(parser, of="of the split and the facts drawn (default 0)")


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.tuner.questions import generate

    texts = [find_text(name) for name in arguments.text]
    given = {"seed": arguments.seed, "limit": arguments.facts, "say": print, "progress": True}
    report = generate(texts, choose_extractor(arguments), arguments.out, **given)
    counts = ", ".join(f"{count} {split}" for split, count in report["pairs"].items())
    unread = sum(len(text["unread"]) for text in report["texts"])
    print(f"{len(report['facts'])} facts: {counts} pairs; {unread} unread, {len(report['left_out'])} left out")
    print(f"written: {arguments.out}/train.jsonl, validation.jsonl, test.jsonl, questions.json")
    return 0


def find_text(name: str) -> Text:
    """Returns the text in a file, or else the text that ships under this name. Raises DataError if there is neither."""
    from hyperflax.tuner.questions import read_text
    from hyperflax_tasks import question_answer

    if pathlib.Path(name).is_file():
        return read_text(name)
    if name in question_answer.names():
        return question_answer.read(name)
    raise DataError(f"--text: expected a file or one of {', '.join(question_answer.names())}, got '{name}'")


def choose_extractor(arguments: argparse.Namespace) -> Extractor:
    """Returns the endpoint that the arguments name, or the rules. Raises ConfigError for half an endpoint."""
    from hyperflax.tuner.questions import Endpoint, Rules

    if arguments.endpoint is None:
        for name in ("endpoint_model", "key_variable", "replies"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name}: expected --endpoint, too")
        return Rules()
    if arguments.endpoint_model is None:
        raise ConfigError("--endpoint: expected --endpoint_model, too")
    out = pathlib.Path(os.path.abspath(arguments.out))  # "." has no name
    return Endpoint(
        arguments.endpoint,
        arguments.endpoint_model,
        cache=arguments.replies or out.with_name(f"{out.name}.replies"),
        key_variable=arguments.key_variable,
        say=print,
    )
