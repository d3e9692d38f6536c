"""`hyperflax evaluate`: a hypermodel on held-out tasks or a benchmark suite, beside its baselines and controls."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from hyperflax.cli.adapt import MOST_STEPS
from hyperflax.cli.models import add_model_argument, add_module_argument
from hyperflax.errors import ConfigError

if TYPE_CHECKING:
    from hyperflax.evaluation.suite import Suite

DESCRIPTION = """Score a hypermodel on held-out tasks and write report.json, report.md and a plot.

  hyperflax evaluate --model strings --mixture strings --split held_out --out reports/strings
  hyperflax evaluate --model runs/ni/model --suite natural_instructions --out reports/ni

Every report holds the bare model, the base with the true instruction, where tasks have one, and with the examples in
context, adapters as generated and refined, and the control: adapters generated from another task's examples.

A suite is evaluated by its own rules: natural_instructions, p3, metaicl/SETTING, or a module with a function suite().
Say with --trained_on what the model and its base were trained on: a suite that stands in it is refused.
"""

SUITES = ("natural_instructions", "p3", "metaicl")
MIXTURE_ONLY = ("split", "metric", "neighbours", "first")  # a suite has a rule of its own for each
SUITE_ONLY = {"draws": 1, "trained_on": []}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--mixture", metavar="NAME", help="what `hyperflax tasks` lists, or a cache")
    what.add_argument("--suite", metavar="NAME", help=f"{', '.join(SUITES)}/SETTING, or a module")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report; a killed run goes on in it")
    parser.add_argument("--split", metavar="SPLIT", help="of the mixture; default: held_out")
    parser.add_argument(
        "--neighbours",
        metavar="SPLIT",
        help="adds the condition nearest_task: of the adapters of this split's tasks, the best one on the support",
    )
    parser.add_argument("--shared", metavar="DIR", help="adapter trained on all training tasks, for `shared`")
    parser.add_argument("--mtf", metavar="DIR", help="T5 fine-tuned on the training tasks, for `mtf`")
    parser.add_argument("--mtf_zero_shot", metavar="DIR", help="one that was shown no examples, for `mtf_zero_shot`")
    parser.add_argument("--metric", help="of a mixture: exact_match (default), exact_match_normalised, rouge_l")
    parser.add_argument("--conditions", nargs="+", default=[], metavar="NAME", help="default: all that can be had")
    parser.add_argument("--shots", type=int, metavar="K", help="examples in the support; default as in training")
    parser.add_argument("--supports", type=int, default=1, metavar="N", help="read the support in N parts (default 1)")
    parser.add_argument(
        "--examples", type=int, metavar="Q", help="scored examples per task (default: 12, of a suite all)"
    )
    parser.add_argument("--tasks", type=int, metavar="N", help="only N tasks, evenly spread; default all")
    parser.add_argument("--draws", type=int, default=1, metavar="D", help="supports per task of a suite (default 1)")
    parser.add_argument("--refine", type=int, default=10, metavar="STEPS", help="steps of the refined conditions (10)")
    parser.add_argument(
        "--support",
        choices=("examples", "positives"),
        help="support from the task's examples (a mixture's default) or the positive examples that come with it",
    )
    parser.add_argument("--first", action="store_true", help="score each task's first examples, not drawn ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trained_on",
        action="append",
        default=[],
        metavar="NAME[:SPLIT]",
        help="training data (a mixture or cache; split train) that must not hold what the suite evaluates; repeatable",
    )
    add_module_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.data import registry
    from hyperflax.evaluate import evaluate
    from hyperflax.evaluate_suite import evaluate_suite
    from hyperflax.evaluation.markdown import conditions_table, coverage, remarks
    from hyperflax.hypermodel import load

    _check(arguments)
    suite = load_suite(arguments.suite) if arguments.suite else None
    model = load(arguments.model)
    registry.register_modules(arguments.module)

    def source(name: str, split: str):
        return registry.load_source(name, split, vocabulary=model.config.vocabulary)

    common: dict[str, Any] = {
        "model": model,
        "out": arguments.out,
        "conditions": arguments.conditions,
        "shots": arguments.shots,
        "tasks": arguments.tasks,
        "refine_steps": arguments.refine,
        "seed": arguments.seed,
        "supports": arguments.supports,
        "shared": arguments.shared,
        "mtf": arguments.mtf,
        "mtf_zero_shot": arguments.mtf_zero_shot,
    }
    if suite is not None:
        report = evaluate_suite(
            suite=suite,
            examples=arguments.examples,
            draws=arguments.draws,
            support=arguments.support,
            trained_on={given: source(*_name_and_split(given)) for given in arguments.trained_on},
            **common,
        )
        print(coverage(report) + "\n")
    else:
        name, split = arguments.mixture, arguments.split or "held_out"
        report = evaluate(
            source=source(name, split),
            metric=arguments.metric or "exact_match",
            examples=12 if arguments.examples is None else arguments.examples,
            support=arguments.support or "examples",
            first=arguments.first,
            neighbours=source(name, arguments.neighbours) if arguments.neighbours else None,
            **common,
        )
    for line in remarks(report):
        print(line + "\n")
    print(conditions_table(report))
    print(f"\nwritten: {arguments.out}/report.json, report.md, report.png")
    return 0


def _name_and_split(given: str) -> tuple[str, str]:
    """What `--trained_on` names, NAME or NAME:SPLIT; a name may be a bucket's address."""
    name, _, split = given.rpartition(":")
    return (name, split) if name and split and "/" not in split else (given.removesuffix(":"), "train")


def load_suite(name: str) -> Suite:
    """The suite of that name: `suite()` of a task module, which gets what follows a slash.

    Raises:
      ConfigError: no such suite, or one that needs a setting, or has none and is given one.
    """
    module, slash, setting = name.partition("/")
    if module not in SUITES and "." not in module:
        raise ConfigError(f"--suite: expected one of {', '.join(SUITES)}/SETTING or a module, got '{name}'")
    if module == "metaicl" and not slash:
        from hyperflax_tasks.metaicl import SETTINGS

        raise ConfigError(f"--suite metaicl/SETTING: expected a setting out of {', '.join(SETTINGS)}, got none")
    if module in SUITES and module != "metaicl" and slash:
        raise ConfigError(f"--suite {module}: expected no setting behind it, got '{setting}'")
    from hyperflax.data.registry import import_module

    loaded = import_module(f"hyperflax_tasks.{module}" if module in SUITES else module)
    if not hasattr(loaded, "suite"):
        raise ConfigError(f"--suite {name}: expected a module with a function suite(), '{loaded.__name__}' has none")
    return loaded.suite(setting) if slash else loaded.suite()


def _check(arguments: argparse.Namespace) -> None:
    """Refuses arguments that what is evaluated has no use for, numbers that mean nothing, and a file for a folder."""
    from hyperflax.evaluation.report import require_place

    beside, other = ("mixture", "suite") if arguments.mixture else ("suite", "mixture")
    defaults = SUITE_ONLY if arguments.mixture else dict.fromkeys(MIXTURE_ONLY)
    if given := [name for name, default in defaults.items() if (getattr(arguments, name) or default) != default]:
        raise ConfigError(f"--{given[0]} goes with --{other}, got it beside --{beside}")
    for name, least in {"examples": 1, "tasks": 1, "draws": 1, "supports": 1, "refine": 0, "shots": 0}.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}: expected at least {least}, got {value}")
    if arguments.refine > MOST_STEPS:
        raise ConfigError(f"--refine: expected at most {MOST_STEPS}, got {arguments.refine}")
    require_place(arguments.out)
