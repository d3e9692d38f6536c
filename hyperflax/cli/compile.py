"""`hyperflax compile`: a training job compiled for TPUs, on a machine that has none."""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import gin
import jax
import numpy as np

from hyperflax.cli import gin_jobs
from hyperflax.compile.programs import PROGRAMS, Program, decoding_program, generation_program, training_program
from hyperflax.compile.report import compile_program, fits, table
from hyperflax.compile.topology import topology_devices
from hyperflax.data import registry
from hyperflax.data.curriculum import Curriculum
from hyperflax.data.examples import ExampleSource, InMemorySource, parts_of
from hyperflax.data.vocabularies import Bytes, Vocabulary
from hyperflax.errors import ConfigError
from hyperflax.files import atomic_file, require_file_place
from hyperflax.json_files import write_json
from hyperflax.trainables import TaskAdapters
from hyperflax.training.partitioning import Partitioner, make_mesh
from hyperflax.training.task_adapters import WithTaskAdapters
from hyperflax.types import Batch

DESCRIPTION = """Compile the training step of a gin run with the real TPU compiler, for a slice that need not be there,
and report what each chip will need: memory, operations, communication, and the speed that follows from them.

  hyperflax compile --gin_file=hyperflax_gin_configs/runs/natural_instructions_hyper_t5_lora.gin --topology=v5e:16x16 \\
    --gin_file=hyperflax_gin_configs/models/t5_1_1_xl.gin --gin_file=hyperflax_gin_configs/meshes/v5e_256.gin

No checkpoint, vocabulary or data is read, and no model is allocated. Ends with 3 if the program does not fit the chip.
Needs the package libtpu: pip install 'hyperflax[tpu]'. docs/compile.md explains the figures.
"""
DOES_NOT_FIT = 3
# What a run file asks for and a compiler does not.
STAND_INS = """
from __gin__ import dynamic_registration
from hyperflax.data import vocabularies
from hyperflax.training import partitioning
partitioning.make_mesh.devices = None
MODEL_DIR = 'none'
INITIAL_CHECKPOINT_PATH = 'none'
VOCABULARY = @vocabularies.Bytes()
"""
_LONG = "a" * 2048
_EXAMPLES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gin_jobs.add_gin_arguments(parser)
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="v5e:16x16, v5p:4x4x8, v6e:4x4 ...: chips of a slice"
    )
    parser.add_argument(
        "--program",
        action="append",
        default=[],
        choices=PROGRAMS,
        help="train (default): the training step; generate: adapters of a batch of tasks; decode: greedy decoding with "
        "them; repeatable",
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="also write the reports, as json")
    parser.add_argument("--hlo", type=pathlib.Path, metavar="FILE", help="also write the last compiled program's text")


def run(arguments: argparse.Namespace) -> int:
    for place in filter(None, (arguments.out, arguments.hlo)):
        require_file_place(place)
    # Everything is abstract, so any backend does; a TPU that is there stays free.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # how long it takes is in the report
    reports = []
    devices = topology_devices(arguments.topology)
    for name in arguments.program or ["train"]:
        report, text = compile_program(program(name, arguments, devices), arguments.topology)
        reports.append(report)
        print(table(report), flush=True)
        if arguments.out:
            write_json(arguments.out, {"reports": reports})
        if arguments.hlo and text:
            with atomic_file(arguments.hlo) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return 0 if all(map(fits, reports)) else DOES_NOT_FIT


def program(name: str, arguments: argparse.Namespace, devices: list[jax.Device]) -> Program:
    """Returns a program of the gin run, for these devices."""
    gin_jobs.parse(gin_jobs.TRAINING, arguments, STAND_INS)
    with gin.unlock_config():
        gin.bind_parameter("hyperflax.training.partitioning.make_mesh.devices", _Uncopied(devices))
    bound = gin.get_bindings(gin_jobs.TRAINING, resolve_references=False)

    def value(key: str) -> Any:
        if key not in bound:
            raise ConfigError(f"gin: the files bind no {gin_jobs.TRAINING}.{key}")
        return copy.deepcopy(bound[key])  # evaluates references

    with _errors_alone("hyperflax.data"):  # that examples are left out is of no interest here
        with registry.standing_in(stand_in):
            model, batches = value("model"), value("batches")
        if isinstance(model, TaskAdapters) or parts_of(batches, WithTaskAdapters):
            raise ConfigError("compile: expected a run without adapters of tasks, whose number only the data tells")
        # Of a curriculum the stage with the largest batches: where its step fits, the others' do.
        starts = (0, *(step for one in parts_of(batches, Curriculum) for step in one.boundaries))
        batch = max((dict(batches.batch(step)) for step in starts), key=_size)
    partitioner = value("partitioner") if bound.get("partitioner") else Partitioner(make_mesh(devices=devices))
    make = {"train": training_program, "generate": generation_program, "decode": decoding_program}[name]
    options = ("microbatches", "loss_normalizing_factor") if name == "train" else ()
    chosen = {key: value(key) for key in options if key in bound}
    return make(model, batch, value("optimizer"), partitioner=partitioner, **chosen)


@contextlib.contextmanager
def _errors_alone(logger: str) -> Iterator[None]:
    """Keeps a logger's warnings back."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _size(batch: Batch) -> int:
    return sum(np.size(leaf) for leaf in batch.values())


class _Uncopied(list):
    """gin hands out copies of values, and devices have none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Uncopied:
        return self


def stand_in(vocabulary: Vocabulary | None) -> ExampleSource:
    """Examples of which only the shapes of batches are made: many short ones, and texts."""
    short = [("a", "b")] * _EXAMPLES
    return InMemorySource.from_strings(
        {"short": short, "texts": [("", _LONG)] * _EXAMPLES},
        vocabulary or Bytes(),
        definitions={"short": "c", "texts": "c"},
    )
