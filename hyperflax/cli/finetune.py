"""`hyperflax finetune`: an adapter trained on a task's own examples."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING

from hyperflax.cli.models import add_model_argument
from hyperflax.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from hyperflax.adapters.kind_config import KindConfig
    from hyperflax.adapters.spec import AdapterSpec
    from hyperflax.checkpoints.artefacts import Adapter

DESCRIPTION = """Train an adapter on a task's own examples, from the generated one or another start.

  hyperflax finetune --model strings --examples train.jsonl --out names_tuned
  hyperflax finetune --model strings --examples train.jsonl --validation held_out.jsonl \\
                     --kind lora --rank 16 --init generated --out names_tuned
  hyperflax predict --model strings --adapter names_tuned --inputs new.jsonl

The held-out loss chooses the step that is kept and ends the run early. At the end stands whether it was worth it: the
held-out score of the bare model, of the adapter as generated and of the tuned one. A killed run goes on, bit for bit,
when it is called again. docs/finetune.md says which start fits which kind.
"""

SIZES = ("rank", "length", "bottleneck")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--examples", required=True, metavar="FILE.jsonl", help='one {"input": ..., "target": ...} a line'
    )
    parser.add_argument("--validation", metavar="FILE.jsonl", help="held-out examples; default: a part of the others")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run, and the adapter directory")
    parser.add_argument(
        "--kind",
        metavar="KIND[+KIND]",
        help="lora, prefix, soft_prompt, parallel_mlp, full, or several; default: what the start is of; one that the "
        "start lacks may need --init random",
    )
    parser.add_argument(
        "--init",
        default="generated",
        metavar="START",
        help="generated (default), random, shared (RUN_shared/model beside the model RUN/model, or NAME_shared beside "
        "NAME), or an adapter directory",
    )
    for name, of in zip(SIZES, ("lora", "prefix or soft_prompt", "parallel_mlp"), strict=True):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"of {of}; default: the start's")
    parser.add_argument("--steps", type=int, default=400, help="most steps (default 400)")
    parser.add_argument("--batch_size", type=int, default=16, help="examples of a step (default 16)")
    parser.add_argument("--learning_rate", type=float, help="peak; default: what is usual for the kind")
    parser.add_argument("--patience", type=int, default=5, metavar="N", help="evaluations without a gain (default 5)")
    parser.add_argument(
        "--metric", default="exact_match", help="of the held-out score (default exact_match; or rouge_l ...)"
    )
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.evaluation.worth import table
    from hyperflax.finetune import GENERATED, RANDOM, finetune
    from hyperflax.hypermodel import load
    from hyperflax.training.finetuning import FineTuning

    names = [field.name for field in dataclasses.fields(FineTuning)]
    settings = FineTuning(**{name: value for name, value in vars(arguments).items() if name in names})
    model, init = load(arguments.model), arguments.init
    if init not in (GENERATED, RANDOM):
        init = load_start(init, place_of(arguments.model))
    like = model.config.spec if isinstance(init, str) else init.spec
    sizes = {name: getattr(arguments, name) for name in SIZES if getattr(arguments, name) is not None}
    report = finetune(
        model=model,
        examples=arguments.examples,
        validation=arguments.validation,
        out=arguments.out,
        kinds=choose_kinds(arguments.kind, sizes, like),
        init=init,
        settings=settings,
        say=print,
    )
    print(table(report))
    print(
        f"{report['verdict']} ({report['metric']}, {report['held_out']} held-out examples, step {report['best_step']})"
    )
    print("The held-out examples also chose the step, so the tuned score errs on the high side.")
    if report["overlap"]:
        print(f"{report['overlap']} held-out inputs are among the training examples, too.")
    print(f"written: {arguments.out}/adapter.json, adapter.safetensors, report.json, loss.png")
    return 0


def place_of(model: str) -> pathlib.Path:
    """Returns the folder that `--model` names, links followed; an address of a bucket as it is."""
    from hyperflax.buckets import BucketPath, locate
    from hyperflax.hypermodel import find

    return pathlib.Path(model) if isinstance(locate(model), BucketPath) else find(model).resolve()


def load_start(init: str, model: pathlib.Path) -> Adapter:
    """Returns the adapter that `--init` names, for what `place_of` says of the model.

    Raises:
      CheckpointError: there is none.
    """
    from hyperflax.buckets import locate
    from hyperflax.checkpoints.artefacts import load_adapter
    from hyperflax.train import EXPORT

    if init != "shared":
        if not locate(init).is_dir():
            raise CheckpointError(f"--init: expected generated, random, shared or an adapter directory, got '{init}'")
        return load_adapter(init)
    # A run's model lies in its folder: runs/strings_shared/model is beside runs/strings/model.
    run, inside = (model.parent, [EXPORT]) if model.name == EXPORT else (model, [])
    beside = locate(run.with_name(f"{run.name}_shared").joinpath(*inside))
    if not beside.is_dir():
        raise CheckpointError(
            f"--init shared: expected an adapter directory at {beside}, found none; train one for this model (train."
            "SharedAdapter, as in hyperflax_gin_configs/runs/strings_shared.gin) and put it there, or give its path"
        )
    return load_adapter(beside)


def choose_kinds(names: str | None, sizes: dict[str, int], like: AdapterSpec) -> tuple[KindConfig, ...] | None:
    """Returns the settings to train, None for exactly what `like` has, where neither kinds nor sizes are given.

    Those of `like` for the kinds that it has, at its size where it does not say more of them (an adapter from
    elsewhere); else defaults; with the given sizes.

    Raises:
      ConfigError: an unknown kind, or a size that none of them has.
    """
    from hyperflax.adapters.kinds import KINDS, kind_of

    if names is None and not sizes:
        return None
    there: dict[str, int] = {}
    for leaf in like.leaves:
        kind = kind_of(leaf).kind
        there[kind] = max(there.get(kind, 0), leaf.slots)
    wanted = sorted(there) if names is None else names.split("+")
    for name in wanted:
        if name not in KINDS or wanted.count(name) > 1:
            raise ConfigError(f"--kind: expected some of {', '.join(KINDS)} joined by '+', got '{names}'")
    chosen: list[KindConfig] = []
    for name in wanted:
        default = KINDS[name]()
        known = [kind for kind in like.kinds if kind.kind == name]
        chosen += known or [default.resized(there[name]) if name in there else default]
    for size in sizes:
        if all(kind.size != size for kind in chosen):
            raise ConfigError(f"--{size}: none of {'+'.join(wanted)} has it")
    return tuple(kind.resized(sizes[kind.size]) if kind.size in sizes else kind for kind in chosen)
