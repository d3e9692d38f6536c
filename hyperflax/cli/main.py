"""`hyperflax COMMAND ...`: one file per command in this folder, imported only when its command runs.

A command module has `DESCRIPTION` (what it does, with an example), `add_arguments(parser)` and `run(arguments) -> exit
code`; the line that `hyperflax --help` has of it stands in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

import hyperflax
from hyperflax.cli.bindings import split_bindings
from hyperflax.cli.compiled_programs import keep_compiled_programs
from hyperflax.cli.exit_codes import exit_code
from hyperflax.cli.host_memory import keep_freed_memory
from hyperflax.errors import ConfigError

COMMANDS = {
    "demo": "train a small hypermodel live and see it adapt a frozen T5 to unseen tasks (5 to 15 minutes on two cores)",
    "train": "run a gin-configured training job",
    "compile": "compile a training job for TPUs on a machine without one: memory, operations, communication, speed",
    "evaluate": "score a hypermodel on held-out tasks beside its baselines and controls",
    "adapt": "turn a few examples into an adapter",
    "finetune": "train an adapter on a task's own examples, from the generated one or another start",
    "tune": "find the fine-tuning pipeline for a data set, learnt from earlier runs on others",
    "serve": "adapt and predict over HTTP, for many callers and adapters at once",
    "predict": "run a model, with or without an adapter, on new inputs",
    "cache": "write a task or mixture as tokenised ArrayRecord shards, to train without TensorFlow",
    "tasks": "list what --mixture takes: registered sources, seqio Tasks and Mixtures",
    "convert": "convert a T5 between Hugging Face's form and T5X's two, and check that it is the same",
    "export": "write an adapter for PEFT, or merged into a whole model",
    "import": "read an adapter of PEFT",
    "inspect": "say what lies in a checkpoint, a model or an adapter",
}
# Commands whose name cannot be a module's.
_MODULES = {"import": "import_adapter"}


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose subcommands load their arguments only when they are chosen."""

    def __init__(self, *args, command: str | None = None, **kwargs):
        self._command = command
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        if self._command:
            module = load_command(self._command)
            self.description = module.DESCRIPTION
            module.add_arguments(self)
            self.set_defaults(run=module.run, called=self.prog)
            self._command = None
        return super().parse_known_args(args, namespace)


def load_command(name: str):
    """Imports the module of a command."""
    return importlib.import_module(f"hyperflax.cli.{_MODULES.get(name, name)}")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser; no command module is imported yet."""
    parser = _Parser(
        prog="hyperflax",
        description="Adapt a frozen T5 to a new task in one forward pass: a hypernetwork reads a few examples and "
        "emits LoRA or prefix parameters. Start with `hyperflax demo`, then "
        "`hyperflax adapt --model strings --examples FILE.jsonl --out ADAPTER_DIR`.",
    )
    parser.add_argument("--version", action="version", version=f"hyperflax {hyperflax.__version__}")
    add_commands(parser, COMMANDS)
    return parser


def add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, str], *, of: str = "") -> None:
    """Adds commands, or the subcommands `of` one, whose modules are imported when they are chosen."""
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, text in commands.items():
        choices.add_parser(
            name,
            command=f"{of}_{name}" if of else name,
            help=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Parses `argv` (default: the process's), runs the command and returns its exit code."""

    def run() -> int:
        rest, bindings = split_bindings(sys.argv[1:] if argv is None else argv)
        arguments = build_parser().parse_args(rest, argparse.Namespace(gin_bindings=bindings))
        if bindings and "gin_file" not in arguments:
            name = bindings[0].partition(" = ")[0]
            raise ConfigError(f"--gin.{name}: expected none, `{arguments.called}` runs no gin")
        keep_freed_memory()
        if not getattr(arguments, "multiprocess", False):  # of several processes only the first keeps what it compiles
            keep_compiled_programs()
        return exit_code(arguments.called, lambda: arguments.run(arguments))

    return exit_code("hyperflax", run)


if __name__ == "__main__":
    sys.exit(main())
