"""Gin for jobs: T5X's flags, search paths, and the configuration written beside the results.

Gin files are code: they call what they name. Only files that the user passes are parsed, never one that comes with a
model.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import inspect
import logging
import os
import pathlib
import re
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

import gin

from hyperflax.buckets import Location, locate
from hyperflax.cli import multiprocess
from hyperflax.cli.models import add_module_argument
from hyperflax.data import registry
from hyperflax.errors import ConfigError
from hyperflax.files import atomic_file
from hyperflax.locks import alone_in
from hyperflax.processes import Processes

PACKAGE = "hyperflax_gin_configs"
TRAINING = "hyperflax.train.train"
_LOG = logging.getLogger("hyperflax.gin")
_SET = re.compile(r"^(\w+) =", re.MULTILINE)  # macros, in the text of a whole configuration
_USED = re.compile(r"%(\w+)\b(?!\.)")  # macros, in gin's text; %gin.REQUIRED is none


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds T5X's flags of a gin job: what it runs, where its data lies and the other hosts."""
    add_gin_arguments(parser)
    parser.add_argument(
        "--tfds_data_dir", metavar="DIR", help="where data sets of TensorFlow Datasets lie, or a bucket"
    )
    multiprocess.add_multiprocess_arguments(parser)


def add_gin_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds T5X's gin flags."""
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file; repeat it, later files win. Files that come with hyperflax are found in any directory as "
        f"{PACKAGE}/runs/NAME.gin",
    )
    parser.add_argument(
        "--gin.NAME",
        dest="gin_help",
        metavar="VALUE",
        help="a gin binding, such as --gin.TRAIN_STEPS=1000 or --gin.MODEL_DIR=runs/first; bindings win over files",
    )
    parser.add_argument(
        "--gin_search_paths", default="", metavar="P,P", help="folders to look for gin files and includes in"
    )
    add_module_argument(parser)


def run_job(name: str, arguments: argparse.Namespace) -> Any:
    """Parses gin files and bindings, then calls the function `name` with the arguments bound to it.

    The configuration of a training job is written to its folder once its run has started. That of a job which is
    refused is not: the files there tell of the run there.

    Raises:
      ConfigError: no file, a file that is not there, what gin has to say about its content, files that do not bind all
        that `name` requires, or a MODEL_DIR that is no path; see `multiprocess.join`.
      CheckpointError: MODEL_DIR is an address that is none of a bucket.
      BusyError: another process is at work in MODEL_DIR.
    """
    _require_file(arguments)  # before the other processes are waited for
    if arguments.tfds_data_dir:
        os.environ["TFDS_DATA_DIR"] = arguments.tfds_data_dir  # TFDS reads it when it is imported
    multiprocess.join(arguments)
    job = parse(name, arguments)
    _require_arguments(name, job)
    folder = _model_dir() if name == TRAINING else None  # an evaluation writes elsewhere
    if folder is None:
        return job()
    with contextlib.ExitStack() as at_the_end:

        def record() -> None:
            _write_config(folder / "config.gin", gin.config_str)
            at_the_end.callback(_write_config, folder / "operative_config.gin", gin.operative_config_str)

        # Here already, not just where it trains: until the end, when this job's configuration is written.
        at_the_end.enter_context(alone_in(folder))
        return job(started=record)


def parse(name: str, arguments: argparse.Namespace, stand_ins: str = "") -> Callable[..., Any]:
    """Parses gin files and bindings and returns the function `name` with the arguments bound to it, not yet called.

    Args:
      name: dotted, of the function.
      arguments: see `add_gin_arguments`.
      stand_ins: gin text parsed behind the files and before the bindings of the command line, for values that the files
        require and that do not matter here.

    Raises:
      ConfigError: see `run_job`.
    """
    _require_file(arguments)
    registry.register_modules(arguments.module)
    gin.clear_config()
    for path in filter(None, arguments.gin_search_paths.split(",")):
        gin.add_config_file_search_path(path)
    logging.getLogger().addFilter(_is_not_a_failed_look_up)
    try:
        with _told("gin"):
            gin.parse_config_files_and_bindings(arguments.gin_file, [], finalize_config=False)
            files = gin.config_str()
            gin.parse_config(stand_ins)
        for binding in arguments.gin_bindings:  # one by one: gin names a line, and the command line has none
            with _told(f"gin: --gin.{binding.replace(' = ', '=', 1)}"):
                gin.parse_config(binding)
        _refuse_unused(arguments.gin_bindings)
        _warn_of_unused(files)
        if not stand_ins:
            with _told("gin"):
                gin.finalize()
    finally:
        logging.getLogger().removeFilter(_is_not_a_failed_look_up)
    try:
        return gin.get_configurable(name)
    except ValueError as error:
        raise ConfigError(f"gin: the files bind no argument of {name}, so there is nothing to run") from error


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    """What gin has to say becomes a ConfigError that names the place."""
    try:
        yield
    except (OSError, SyntaxError, tokenize.TokenError, ValueError, AttributeError, ImportError) as error:
        raise ConfigError(f"{place}: {error}") from error


def _refuse_unused(bindings: list[str]) -> None:
    """Refuses a macro of the command line that no file uses: gin takes any name, and the job would run without it."""
    named = {binding.partition(" = ")[0] for binding in bindings}
    used = set(_USED.findall(gin.config_str()))
    for name in sorted(filter(str.isidentifier, named - used)):
        raise ConfigError(f"--gin.{name}: expected a name that the gin files use, which are {', '.join(sorted(used))}")


def _warn_of_unused(files: str) -> None:
    """Warns of macros that the files set and nothing uses: gin takes any name, and a misspelt one changes nothing.

    No error: a file for several runs may set what one of them does not read.
    """
    # The command line may use one, or bind over its use.
    used = {*_USED.findall(files), *_USED.findall(gin.config_str())}
    if unused := sorted(set(_SET.findall(files)) - used):
        told = ", ".join(unused), ", ".join(sorted(used))
        _LOG.warning("gin: nothing uses what the files set as %s; names that are used are %s", *told)


def _require_file(arguments: argparse.Namespace) -> None:
    if not arguments.gin_file:
        raise ConfigError(f"expected at least one --gin_file; hyperflax's own are: {', '.join(shipped_runs())}")


def _require_arguments(name: str, job: Callable[..., Any]) -> None:
    bound = gin.get_bindings(name, resolve_references=False)
    parameters = inspect.signature(job).parameters.values()
    required = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    if missing := [argument for argument in required if argument not in bound]:
        raise ConfigError(f"gin: expected the files to bind {name}.{missing[0]}; required are {', '.join(required)}")


def _is_not_a_failed_look_up(record: logging.LogRecord) -> bool:
    """gin logs an error for every place where a file is not, before it finds the file in the next one."""
    return not record.getMessage().startswith("Path not found")


def shipped_folder() -> pathlib.Path:
    """Returns the folder of the gin files that come with hyperflax."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"package {PACKAGE} is not installed; reinstall hyperflax")
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def shipped_runs() -> list[str]:
    """Returns the names of the shipped run files, as `--gin_file` takes them."""
    folder = shipped_folder()
    return sorted(f"{PACKAGE}/{path.relative_to(folder)}" for path in folder.glob("runs/*.gin"))


def _model_dir() -> Location | None:
    """Returns the folder that the training job writes to, its own `model_dir`; None where the job will refuse it.

    Raises:
      ConfigError, CheckpointError: no path, see `locate`.
    """
    bound = gin.get_bindings(TRAINING, resolve_references=False)
    model_dir = copy.deepcopy(bound["model_dir"])  # evaluates macros
    return locate(model_dir) if model_dir != "" else None


def _write_config(path: Location, content: Callable[..., str]) -> None:
    """Writes the configuration, as T5X does. Several processes have one, and the first one writes it."""
    if Processes.running().first:
        with atomic_file(path) as temporary:
            temporary.write_text(content(max_line_length=120))
