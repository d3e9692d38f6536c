"""`hyperflax evaluate`: a hypermodel on held-out tasks, beside its baselines and controls."""

from __future__ import annotations

import argparse

from hyperflax.cli.models import add_model_argument, add_module_argument

DESCRIPTION = """Score a hypermodel on held-out tasks and write report.json, report.md and a plot.

  hyperflax evaluate --model strings --mixture strings --split held_out --out reports/strings

Every report holds the bare model, the base with the true instruction and with the examples in context, adapters as
generated and refined, and the control: adapters generated from another task's examples.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--mixture", required=True, metavar="NAME", help="what `hyperflax tasks` lists, or a cache")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report; a killed run goes on in it")
    parser.add_argument("--split", default="held_out", metavar="SPLIT", help="default: held_out")
    parser.add_argument("--neighbours", metavar="SPLIT", help="split whose tasks are candidates of `nearest_task`")
    parser.add_argument("--shared", metavar="DIR", help="adapter trained on all training tasks, for `shared`")
    parser.add_argument("--mtf", metavar="DIR", help="T5 fine-tuned on the training tasks, for `mtf`")
    parser.add_argument("--mtf_zero_shot", action="store_true", help="show that T5 no examples")
    parser.add_argument(
        "--metric", default="exact_match", help="exact_match (default), exact_match_normalised, rouge_l"
    )
    parser.add_argument("--conditions", nargs="+", default=[], metavar="NAME", help="default: all that can be had")
    parser.add_argument("--shots", type=int, metavar="K", help="examples in the support; default as in training")
    parser.add_argument("--supports", type=int, default=1, metavar="N", help="read the support in N parts (default 1)")
    parser.add_argument("--examples", type=int, default=12, metavar="Q", help="scored examples per task (default 12)")
    parser.add_argument("--tasks", type=int, metavar="N", help="only N tasks, evenly spread; default all")
    parser.add_argument("--refine", type=int, default=10, metavar="STEPS", help="steps of the refined conditions (10)")
    parser.add_argument(
        "--support",
        choices=("examples", "positives"),
        default="examples",
        help="support from the task's examples (default) or the positive examples that come with it",
    )
    parser.add_argument("--first", action="store_true", help="score each task's first examples, not drawn ones")
    parser.add_argument("--seed", type=int, default=0)
    add_module_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.data import registry
    from hyperflax.evaluate import evaluate
    from hyperflax.evaluation.markdown import conditions_table
    from hyperflax.hypermodel import load

    model = load(arguments.model)
    registry.register_modules(arguments.module)

    def source(split: str):
        return registry.load_source(arguments.mixture, split, vocabulary=model.config.vocabulary)

    report = evaluate(
        model=model,
        source=source(arguments.split),
        out=arguments.out,
        conditions=arguments.conditions,
        metric=arguments.metric,
        shots=arguments.shots,
        examples=arguments.examples,
        tasks=arguments.tasks,
        refine_steps=arguments.refine,
        support=arguments.support,
        first=arguments.first,
        seed=arguments.seed,
        neighbours=source(arguments.neighbours) if arguments.neighbours else None,
        supports=arguments.supports,
        shared=arguments.shared,
        mtf=arguments.mtf,
        mtf_zero_shot=arguments.mtf_zero_shot,
    )
    print(conditions_table(report))
    print(f"\nwritten: {arguments.out}/report.json, report.md, report.png")
    return 0
