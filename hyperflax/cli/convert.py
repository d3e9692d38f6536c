"""`hyperflax convert`: a T5 from one form into another, and the proof that it is the same one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperflax.checkpoints.convert import Behaviour

DESCRIPTION = """Convert a T5 between Hugging Face's form and T5X's two forms; the form of SRC is detected.

  hyperflax convert flan-t5-small flan_for_t5x --to t5x --check
  hyperflax convert runs/t5/checkpoint_1000000 t5_for_transformers

SRC may be a transformers directory (safetensors), a T5X checkpoint or run (legacy or Orbax), also in a bucket (gs:// or
s3://), a T5 directory or a model directory of hyperflax, or the name of a model that ships. Neither t5x nor torch nor
TensorFlow is needed. --check runs both on the same random tokens, compares every layer, the logits and a greedy decode,
and writes DST/parity.json; it fails where they differ.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="what to convert")
    parser.add_argument("destination", metavar="DST", help="folder to write; must not exist yet, or be empty")
    parser.add_argument(
        "--to",
        choices=("t5x", "orbax", "huggingface"),
        help="the form to write; by default huggingface, and t5x from a transformers directory",
    )
    parser.add_argument("--check", action="store_true", help="run both on the same tokens and write DST/parity.json")
    parser.add_argument("--scalable", action="store_true", help="write scalable_t5's scanned layers, for T5X")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="store the parameters so; default: as they are"
    )
    parser.add_argument("--step", type=int, metavar="N", help="which of a run's checkpoints; default: the latest")


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.checkpoints.convert import certify
    from hyperflax.cli.progress import byte_bar
    from hyperflax.files import require_directory_place

    require_directory_place(arguments.destination)
    told, expected = _copy(arguments)
    if expected is not None:
        with byte_bar("read again") as progress:
            certificate = certify(expected, arguments.destination, progress=progress)
        told += f"; logits differ by {certificate.max_error:.1e} of their largest, greedy tokens equal: parity.json"
    print(told)
    return 0


def _copy(arguments: argparse.Namespace) -> tuple[str, Behaviour | None]:
    """Writes DST; returns what to tell, and what the model computes if it is to be checked.

    The model ends with this function: the check reads what was written, and both together are twice the memory.
    """
    from hyperflax.checkpoints.convert import behaviour
    from hyperflax.checkpoints.forms import form_of, read_model, write_model
    from hyperflax.cli.progress import byte_bar
    from hyperflax.errors import ConfigError
    from hyperflax.hypermodel import shipped

    place = shipped(arguments.source)
    form = arguments.to or ("t5x" if form_of(place, arguments.step) == "huggingface" else "huggingface")
    if arguments.scalable and form == "huggingface":
        raise ConfigError(f"--scalable: expected --to t5x or orbax, which have such a layout, got {form}")
    with byte_bar("read") as progress:
        source = read_model(place, step=arguments.step, dtype=arguments.dtype, progress=progress)
        goes_along = form != "huggingface" and arguments.scalable == source.scalable
        state = source.read_state(progress) if source.read_state and goes_along else None
    expected = behaviour(source) if arguments.check else None
    with byte_bar("written") as progress:
        write_model(arguments.destination, source, form, state=state, scalable=arguments.scalable, progress=progress)
    if source.read_state and not goes_along:
        print("left behind: the optimizer's state, which that form or layout does not hold")
    return f"{arguments.destination}: {form}, from {source.form} {arguments.source}", expected
