"""`hyperflax demo`: the main job for a newcomer, in a few minutes on two CPU cores."""

from __future__ import annotations

import argparse
import functools
import logging
import pathlib
import shutil
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperflax.hypermodel import Hypermodel

DESCRIPTION = """See a frozen T5 learn unseen tasks from four examples each, without back-propagation.

The demo shows the small T5 that comes with hyperflax failing a text transformation it was not told about, trains a
hypernetwork live, three to eight minutes of two cores, scores it on held-out transformations beside the bare model,
the control with another task's examples, and the fully trained hypermodel that ships, and lets an adapter work on a few
strings. The live hypernetwork's T5, which reads the examples, starts as that of the hypermodel that ships; its slots
and heads, which write the adapter, start at random. So few steps go to the easier half of the tasks: names, e-mail
addresses, phone numbers and dates, transformed by one or two operations; the hypermodel that ships knows all of
docs/strings.md. It needs no network. It writes OUT/report.json, report.md, report.png, loss.png and OUT/adapter.
"""

STEPS = 300
# What three minutes are enough for; rows are as long as nineteen examples in twenty of these need.
KINDS = (
    "name", "fullname", "rawname", "lastfirst", "titled", "email", "workemail", "phone", "intphone",
    "isodate", "usdate", "longdate",
)  # fmt: skip
MAX_DEPTH = 2
EXAMPLES = [
    ("Grace Hopper", "Hopper, G."),
    ("Alan Turing", "Turing, A."),
    ("Katherine Johnson", "Johnson, K."),
    ("Edsger Dijkstra", "Dijkstra, E."),
]
INPUTS = ["Barbara Liskov", "Donald Knuth", "Radia Perlman", "Frances Allen"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="strings",
        metavar="NAME_OR_DIR",
        help="whose base model is used, and which stands beside the live one as `shipped` (default: strings)",
    )
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder for the results (default: demo)")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"training steps (default {STEPS})")
    parser.add_argument("--tasks", type=int, default=64, metavar="N", help="held-out tasks to score (default 64)")


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.checkpoints.artefacts import ADAPTER_FILES
    from hyperflax.errors import ConfigError
    from hyperflax.files import require_directory_place
    from hyperflax.hypermodel import load

    if arguments.steps < 1 or arguments.tasks < 2:
        raise ConfigError(
            f"demo: expected --steps of at least 1 and --tasks of at least 2, got {arguments.steps}, {arguments.tasks}"
        )
    out = pathlib.Path(arguments.out)
    require_directory_place(out / "adapter", overwrite=True, owned=ADAPTER_FILES)
    _one_device_per_core()
    # Short rows leave long examples out, which is no news to a newcomer.
    logging.getLogger("hyperflax.data").setLevel(logging.ERROR)
    shipped = load(arguments.model)
    _show_bare(shipped)
    live = _train(shipped, arguments.steps, out)
    _score(live, shipped, arguments.tasks, out, arguments.steps)
    _show_adapter(live, shipped, out, arguments.model)
    return 0


def _one_device_per_core() -> None:
    """Splits training over the cores of a CPU; single-threaded operations then run side by side. A GPU stays one."""
    import os

    import jax

    jax.config.update("jax_num_cpu_devices", 1 << (min(os.cpu_count() or 1, 8).bit_length() - 1))


def _command() -> str:
    """How this program was called: `make demo` puts no `hyperflax` where the shell would find it."""
    import sys

    called = pathlib.Path(sys.argv[0])
    return str(called) if called.name == "hyperflax" else "hyperflax"


def _heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if _is_terminal() else f"\n== {text}", flush=True)


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _show_bare(model: Hypermodel) -> None:
    """The frozen T5 on a task it was not told about."""
    _heading("1. A frozen T5 that does not know the task")
    print("You want names turned round; the model sees the input alone:")
    for text, prediction in zip(INPUTS, model.predict(INPUTS), strict=True):
        print(f"  {text!r:24} -> {prediction!r}")


def _train(shipped: Hypermodel, steps: int, out: pathlib.Path) -> Hypermodel:
    """Trains new slots and heads on the T5 that reads the examples, by the loop that every training run uses.

    Three minutes are enough to learn to write adapters, and not to learn to read examples as well: from the base's T5
    the same steps reach 11% of held-out exact match, from the reading one 38% (docs/strings.md).
    """
    from hyperflax.data.episodes import Episodes
    from hyperflax.hypermodel import Hypermodel
    from hyperflax.trainables import HypernetworkOf
    from hyperflax.training import loop
    from hyperflax.training.optimizers import make_optimizer
    from hyperflax.training.partitioning import Partitioner
    from hyperflax.training.schedules import warmup_cosine
    from hyperflax_tasks.strings.episodes import source

    _heading(f"2. Training a hypernetwork live: {steps} steps, the T5 stays frozen")
    print("What reads the examples is there already; what writes the adapter starts at random and is learnt now.")
    training = shipped.config.episodes.replace(
        tasks_per_batch=16,
        examples=4,
        support_length=56,
        inputs_length=28,
        targets_length=28,
        too_long="skip",
        too_few="skip",
    )
    with tempfile.TemporaryDirectory() as folder:
        shipped.save(f"{folder}/shipped")
        job = HypernetworkOf(
            shipped.config,
            base_checkpoint=f"{folder}/shipped",
            start=f"{folder}/shipped",
            fresh_heads=True,
            name="live",
        )
        state = loop.train(
            objective=job.objective,
            optimizer=make_optimizer("adamw", warmup_cosine(1e-3, min(30, steps - 1), steps), clip_norm=1.0),
            batches=Episodes(source("train", examples=16, kinds=KINDS, max_depth=MAX_DEPTH), training, seed=0),
            frozen=shipped.parts.base,
            initial_params=functools.partial(job.initial_params, partitioner=Partitioner()),
            model_dir=f"{folder}/run",
            total_steps=steps,
            log_period=10,
            save_period=0,
        )
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{folder}/run/loss.png", out / "loss.png")
        return Hypermodel(shipped.config, shipped.parts.base, state.params, name="live")


def _score(live: Hypermodel, shipped: Hypermodel, tasks: int, out: pathlib.Path, steps: int) -> None:
    """The table: live and shipped hypermodel on held-out transformations, with baselines and control."""
    from hyperflax import configs
    from hyperflax.evaluation.conditions import Conditions
    from hyperflax.evaluation.held_out import HeldOut
    from hyperflax.evaluation.markdown import conditions_table
    from hyperflax.evaluation.plots import write_plots
    from hyperflax.evaluation.provenance import run_info
    from hyperflax.evaluation.report import write_report
    from hyperflax.evaluation.runner import evaluate_conditions
    from hyperflax_tasks.strings.episodes import source

    began = time.monotonic()
    _heading(f"3. Scores on {tasks} transformations that no training task behaves like")
    episodes = live.config.episodes
    held_out = HeldOut.from_source(
        source("held_out", examples=16, kinds=KINDS, max_depth=MAX_DEPTH), episodes, examples=8, tasks=tasks
    )
    ours = Conditions(live, held_out)
    theirs = Conditions(shipped, held_out)
    conditions = {
        **ours.pick("bare", "instruction", "in_context", "generated", "refined", "shuffled_support"),
        "shipped": theirs.generated,
        "shipped_refined": theirs.refined,
    }
    table = evaluate_conditions(held_out.tasks, conditions, "exact_match", batch_size=32)
    config = {
        "steps": steps,
        "base": live.base_fingerprint,
        "shipped": shipped.parts.id,
        "tasks": len(held_out.tasks),
        "episodes": configs.to_json(episodes),
    }
    report = table.report(run_info(config, seconds=time.monotonic() - began))
    write_report(report, out)
    write_plots(report, out)
    print(conditions_table(report))


def _show_adapter(live: Hypermodel, shipped: Hypermodel, out: pathlib.Path, name: str) -> None:
    """One adapter at work, and saved."""
    _heading("4. Four examples in, an adapter out")
    for text, target in EXAMPLES:
        print(f"  shown   {text!r:24} -> {target!r}")
    live_adapter = live.adapt(EXAMPLES)
    began = time.monotonic()
    adapter = shipped.adapt(EXAMPLES)
    milliseconds = 1000 * (time.monotonic() - began)
    columns = zip(INPUTS, live.predict(INPUTS, live_adapter), shipped.predict(INPUTS, adapter), strict=True)
    for text, live_answer, answer in columns:
        print(f"  asked   {text!r:24} -> shipped {answer!r:20} live {live_answer!r}")
    adapter.save(out / "adapter", overwrite=True)
    values = adapter.spec.num_parameters
    print(f"\nThe adapter: {values:,} values, made in {milliseconds:.0f} ms with compilation. Try it:")
    print('  echo \'{"input": "Ada Lovelace"}\' \\')
    print(f"    | {_command()} predict --model {name} --adapter {out}/adapter --inputs -")
    print(f"Report and plots: {out}/report.md, {out}/report.png, {out}/loss.png")
