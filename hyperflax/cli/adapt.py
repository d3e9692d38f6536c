"""`hyperflax adapt`: a few examples in, an adapter directory out."""

from __future__ import annotations

import argparse
import dataclasses

from hyperflax.cli.models import add_model_argument

DESCRIPTION = """Turn a few examples of a task into an adapter for the model's frozen T5, in one forward pass.

  printf '%s\\n' '{"input": "ada lovelace", "target": "Lovelace, A."}' \\
                '{"input": "alan turing", "target": "Turing, A."}' > names.jsonl
  hyperflax adapt --model strings --examples names.jsonl --out names_adapter
  echo '{"input": "grace hopper"}' | hyperflax predict --model strings --adapter names_adapter --inputs -

--refine adds gradient steps on the same examples afterwards: slower by a second or so, and usually better.

When the adapter is written, an estimate follows of whether to use it: some of the examples are left out in turn, and
asked of an adapter that is made from the rest. It ends with an advice: use, refine, give more or shorter examples, or
fine-tune.
"""

MOST_STEPS = 10**6  # days of refining; JAX counts them in 32 bits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--examples", required=True, metavar="FILE.jsonl", help='one {"input": ..., "target": ...} a line; - is stdin'
    )
    parser.add_argument(
        "--out", required=True, metavar="ADAPTER_DIR", help="folder to write; must not exist yet, or be empty"
    )
    parser.add_argument("--refine", type=int, default=0, metavar="STEPS", help="Adam steps on the examples (default 0)")
    parser.add_argument(
        "--supports",
        type=int,
        default=1,
        metavar="N",
        help="read the examples in N parts, for many examples (default 1)",
    )
    parser.add_argument(
        "--estimate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="afterwards, say how good the adapter is (default; needs two examples)",
    )
    parser.add_argument("--metric", default="exact_match", help="of the estimate (default exact_match; or rouge_l ...)")
    parser.add_argument("--definition", metavar="TEXT", help="the task's instruction, for models that read one")


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.data.jsonl import read_lines
    from hyperflax.errors import AdapterError, ConfigError
    from hyperflax.evaluation.metrics import example_metric
    from hyperflax.files import require_directory_place
    from hyperflax.hypermodel import load

    # Before anything is made.
    example_metric(arguments.metric, "--metric")
    if not 0 <= arguments.refine <= MOST_STEPS:
        raise ConfigError(f"--refine: expected 0 to {MOST_STEPS}, got {arguments.refine}")
    require_directory_place(arguments.out, in_bucket=True)
    lines = read_lines(arguments.examples)
    model = load(arguments.model)
    adapter = model.adapt(
        lines, refine_steps=arguments.refine, definition=arguments.definition, supports=arguments.supports
    )
    metadata = dataclasses.replace(adapter.metadata, created_with="hyperflax adapt")
    dataclasses.replace(adapter, metadata=metadata).save(arguments.out)
    values, examples = adapter.spec.num_parameters, f"{len(lines)} example{'s' * (len(lines) > 1)}"
    print(
        f"{arguments.out}: adapter of {values:,} values from {examples}, for model {model.parts.id}",
        flush=True,
    )
    if arguments.estimate and len(lines) == 1:
        print("no estimate: expected two examples or more, of which some are left out, got one")
    elif arguments.estimate:
        from hyperflax.evaluation.estimate import estimate

        try:
            found = estimate(
                model,
                lines,
                definition=arguments.definition,
                metric=arguments.metric,
                refine_steps=arguments.refine,
                supports=arguments.supports,
                progress=True,
            )
        except AdapterError as error:  # of an adapter made for the estimate; the one that was asked for is there
            print(f"no estimate: {error}")
        else:
            print(found.table())
    return 0
