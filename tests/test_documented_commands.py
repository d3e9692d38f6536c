"""Every command line that a page, a gin file or a help text shows is one that hyperflax takes."""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
from collections.abc import Iterator

import pytest

from hyperflax.cli import gin_jobs
from hyperflax.cli.bindings import split_bindings
from hyperflax.cli.compile import STAND_INS
from hyperflax.cli.main import COMMANDS, build_parser

ROOT = pathlib.Path(__file__).parents[1]
SHOWN_IN = ("*.md", "docs/**/*.md", "gin_configs/**/*.gin", "hyperflax/cli/*.py", "hyperflax/*.py")
COMMAND = re.compile(rf"^(?:#|\$)?\s*(?:JAX_PLATFORMS=\S+ )?hyperflax +((?:{'|'.join(COMMANDS)}) .*)")
MODULE = re.compile(r"^(?:#|\$)?\s*python -m hyperflax\.((?:train|evaluate|evaluate_suite|infer) .*)")
ASSIGNMENT = re.compile(r"^([A-Z]+)=(.*)$", re.MULTILINE)  # of the shell


def shown(pattern: re.Pattern[str]) -> list[str]:
    """The commands of all files that match, each on one line, without the options in brackets."""

    def of(path: pathlib.Path) -> Iterator[str]:
        text = path.read_text("utf-8").replace("\\\\\n", "\\\n")  # as a Python string has it
        text = re.sub(r"\\\n[# ]*", "", text)
        for name, value in reversed(ASSIGNMENT.findall(text)):
            text = text.replace(f"${name}", name if "$(" in value else value.removeprefix('"').removesuffix('"'))
        for line in text.splitlines():
            if match := pattern.match(line):
                yield re.sub(r" \[[^]]*\](?= |$)", "", match[1]).replace("peft|merged", "peft")

    paths = sorted({path for glob in SHOWN_IN for path in ROOT.glob(glob)})
    found = sorted({command for path in paths for command in of(path) if " and " not in command})
    assert len(found) > 3
    return found


def with_shipped_files(arguments: argparse.Namespace) -> bool:
    """Whether it is a job of gin files and modules that are here, and not of a reader's own."""
    files = getattr(arguments, "gin_file", [])
    return bool(files) and all(
        name.startswith((f"{gin_jobs.PACKAGE}/", "hyperflax_tasks.")) for name in [*files, *arguments.module]
    )


def parse(job: str, arguments: argparse.Namespace, stand_ins: str = "") -> None:
    arguments.module = []  # they read the data that they register
    gin_jobs.parse(job, arguments, stand_ins)


@pytest.mark.parametrize("command", shown(COMMAND))
def test_a_shown_command_is_taken(command: str, capsys) -> None:
    words = shlex.split(command, comments=True)
    rest, bindings = split_bindings([word for word in words if word != "..."])
    try:
        arguments = build_parser().parse_args(rest, argparse.Namespace(gin_bindings=bindings))
    except SystemExit:
        told = capsys.readouterr().err
        assert "..." in words, told
        assert "the following arguments are required" in told
    else:
        if with_shipped_files(arguments):
            compiled = arguments.command == "compile" or "..." in words  # then not every required value is shown
            parse(gin_jobs.TRAINING, arguments, STAND_INS if compiled else "")


@pytest.mark.parametrize("command", shown(MODULE))
def test_a_shown_module_s_job_is_taken(command: str) -> None:
    job, *words = shlex.split(command, comments=True)
    rest, bindings = split_bindings(words)
    parser = argparse.ArgumentParser()
    gin_jobs.add_job_arguments(parser)
    arguments = parser.parse_args(rest, argparse.Namespace(gin_bindings=bindings))
    if with_shipped_files(arguments):
        parse(f"hyperflax.{job}.{job}", arguments)
