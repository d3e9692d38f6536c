"""`hyperflax predict`: a model, with or without an adapter, on new inputs."""

from __future__ import annotations

import argparse
import json

from hyperflax.cli.models import add_model_argument

DESCRIPTION = """Run a model's frozen T5 on inputs, with an adapter or bare.

  hyperflax predict --model strings --adapter names_adapter --inputs new.jsonl --out answers.jsonl

Inputs are lines {"input": ...}; the answers are lines {"input": ..., "prediction": ...} in the same order. An adapter
made for another base model is refused. With --out a command that was killed goes on when it is called again.
"""

MOST_TOKENS = 2**14  # room for them is made in the decoder's cache, for every row and layer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--adapter",
        metavar="ADAPTER_DIR",
        help="from `hyperflax adapt`, `finetune`, `tune run` or `import`; without it the model is bare",
    )
    parser.add_argument("--inputs", required=True, metavar="FILE.jsonl", help='one {"input": ...} a line; - is stdin')
    parser.add_argument("--out", metavar="FILE.jsonl", help="where to write the answers; default stdout")
    parser.add_argument("--max_length", type=int, metavar="TOKENS", help="most tokens of an answer")


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.errors import ConfigError
    from hyperflax.files import require_file_place
    from hyperflax.hypermodel import load
    from hyperflax.infer import given, predictions, write_answers

    if arguments.max_length is not None and not 1 <= arguments.max_length <= MOST_TOKENS:
        raise ConfigError(f"--max_length: expected 1 to {MOST_TOKENS}, got {arguments.max_length}")
    if arguments.out:
        require_file_place(arguments.out)
    lines, adapter = given(arguments.inputs, arguments.adapter, out=arguments.out or None)
    model = load(arguments.model, hypernetwork=False)
    if arguments.out:
        write_answers(model, lines, adapter, out=arguments.out, max_length=arguments.max_length)
        return 0
    for row in predictions(model, lines, adapter, arguments.max_length):
        print(json.dumps(row, ensure_ascii=False), flush=True)  # who reads a pipe has it while the next are made
    return 0
